//! Cases: ports of the machine that lead to pods.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
};

use troupe::{
    model::{
        Uid,
        host_port::{HostPort, Protocol},
    },
    net::relay::Host,
    runtime::ContainerState,
};

use super::harness::{Bench, Harness, STEP};

/// What a pod's server answers at a port of the machine.
async fn ask(listen: SocketAddr) -> String {
    let begun = std::time::Instant::now();
    loop {
        let asked = tokio::task::spawn_blocking(move || -> std::io::Result<String> {
            let mut client = TcpStream::connect(listen)?;
            client.set_read_timeout(Some(STEP))?;
            client.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            client.read_to_string(&mut answer).map(|_| answer)
        });
        match asked.await.unwrap() {
            Ok(answer) => return answer,
            // The program has begun, but listens in a moment.
            Err(error) => assert!(begun.elapsed() < STEP, "{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

pub async fn a_port_of_the_machine_leads_to_a_pod_also_after_a_restart<H: Harness>(bench: &mut Bench<H>) {
    // Nobody else is at that address, so that the port stays free.
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let address = std::net::Ipv4Addr::new(127, 99, high, low);
    let listen = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap();
    let port = HostPort { protocol: Protocol::Tcp, listen, optional: false, port: 8123 };
    let (host, uid) = (Host::default(), Uid::from("a"));
    let relayed = host.open(&uid, "conformance/ports", vec![port]).await.unwrap();
    let ip = bench.sandbox("a").await.ip.unwrap();
    let relays = relayed.lead(ip).unwrap();
    let id = bench.start("a", bench.hello("a", &["--listen", "0.0.0.0:8123"])).await;
    let answer = ask(listen).await;
    assert!(answer.starts_with("HTTP/1.") && answer.contains("host-a"), "{answer}");
    drop(relays);
    bench.restart(std::future::ready(())).await;
    let ip = bench.find_sandbox("a").await.unwrap().ip.unwrap();
    let relays = host.open(&uid, "conformance/ports", vec![port]).await.unwrap().lead(ip).unwrap();
    assert!(ask(listen).await.contains("host-a"));
    assert_eq!(bench.state(&id).await, ContainerState::Running);
    relays.end().await;
    drop(TcpListener::bind(listen).unwrap());
}
