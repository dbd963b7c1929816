//! `troupe demo`: a throw-away cluster runs the whole story in a minute, with real containers where this user may have
//! them, and says what it shows.
//!
//! Owns: the story. Each act types a command of `troupe` itself, waits for what it should lead to, and counts only
//! what was seen: a promise that is not kept in time ends the demo with exit code 1. However it ends, [`Stage`] takes
//! everything down. What is simulated is said to be.

mod pods;
mod process;
mod stage;
mod tell;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use serde_json::Value;

use self::{
    pods::{Pod, Pods},
    stage::Stage,
    tell::Teller,
};
use super::{DemoArgs, client::Client};

/// What every act returns; the text says what did not happen.
type Act<T = ()> = Result<T, String>;

/// How long anything may take. On an idle machine it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

const CONTROLLER: &str = "\
apiVersion: v1
kind: ReplicationController
metadata:
  name: hello
spec:
  replicas: 3
  selector: {app: hello}
  template:
    metadata:
      labels: {app: hello}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: web
        image: troupe.local/hello
        ports:
        - containerPort: 8080
";

const TOO_BIG: &str = "\
apiVersion: v1
kind: Pod
metadata:
  name: too-big
spec:
  containers:
  - name: web
    image: troupe.local/hello
    resources:
      requests: {cpu: \"1000\"}
";

/// Tells the story; exit code 0 only if all of it happened. `note` is something to say before it about where it is told.
pub fn demo(args: &DemoArgs, note: Option<&str>) -> ExitCode {
    let began = Instant::now();
    let teller = Teller::new(args.fast);
    let told = actix::System::new().block_on(async {
        if let Some(note) = note {
            teller.note(note);
        }
        let mut stage = match Stage::open(args.real()) {
            Ok(stage) => stage,
            Err(why) => return Err(why),
        };
        let told = tokio::select! {
            told = story(&mut stage, &teller) => told,
            () = process::interrupted() => Err("interrupted".into()),
        };
        let cleared = curtain(&mut stage, &teller);
        match (told, cleared) {
            (Err(why), _) => Err(format!("{why}{}", stage.last_words())),
            (Ok(()), cleared) => cleared,
        }
    });
    match told {
        Ok(()) => {
            teller.end(began.elapsed());
            ExitCode::SUCCESS
        }
        Err(why) => {
            teller.broken(&why);
            ExitCode::FAILURE
        }
    }
}

async fn story(stage: &mut Stage, teller: &Teller) -> Act {
    start(stage, teller).await?;
    let client = Client::from_kubeconfig(stage.kubeconfig()).map_err(|e| e.to_string())?;
    let mut pods = Pods::watch(&client).await?;
    create(stage, teller, &mut pods).await?;
    if stage.real() {
        kill_container(stage, teller, &mut pods).await?;
    }
    delete_pod(stage, teller, &mut pods).await?;
    scale(stage, teller, &mut pods).await?;
    refuse(stage, teller, &mut pods).await?;
    if stage.real() {
        drop(pods);
        pods = kill_cluster(stage, teller).await?;
    }
    delete_all(stage, teller, &mut pods).await
}

async fn start(stage: &mut Stage, teller: &Teller) -> Act {
    teller.act("A cluster", "One process is master and node. Nothing was installed, nothing was configured.");
    if !stage.real() {
        teller.note(
            "Containers are simulated here. The controllers, the store, the API and the links are the real ones.",
        );
    }
    teller.command("troupe up");
    let took = stage.start().await?;
    teller.seen(&format!("ready {}: the API serves and the node takes pods", after(took)));
    teller.run(stage, &["get", "nodes"])
}

async fn create(stage: &mut Stage, teller: &Teller, pods: &mut Pods) -> Act {
    teller.act(
        "Desired state",
        "A replication controller is told to keep three pods. The image is built in: it is this very program.",
    );
    teller.text(CONTROLLER);
    let began = Instant::now();
    teller.run_with(stage, &["create", "-f", "-"], CONTROLLER)?;
    pods.until("three pods run", |pods| running(pods, 3)).await?;
    teller.seen(&format!("three pods run {}", after(began.elapsed())));
    teller.run(stage, &["get", "pods", "-o", "wide"])?;
    if stage.real() {
        let pod = first(pods)?;
        let address = pod.address().ok_or("a running pod has no address")?;
        stage.remember(pod.process()?, &address);
        teller.command(&format!("curl http://{address}:8080/"));
        teller.text(&process::fetch(&address).await?);
    }
    Ok(())
}

async fn kill_container(stage: &Stage, teller: &Teller, pods: &mut Pods) -> Act {
    teller.act("A container dies", "Its process is killed from outside. The pod is its supervisor.");
    let victim = first(pods)?;
    let pid = victim.process()?;
    let began = Instant::now();
    teller.command(&format!("kill -9 {pid}   # the process of pod {}", victim.name));
    process::kill(pid)?;
    let uid = victim.uid.clone();
    pods.until("the killed container runs again", |pods| {
        pods.values().any(|pod| pod.uid == uid && pod.restarts == 1 && pod.ready)
    })
    .await?;
    teller.seen(&format!("the same pod runs again {}, with one restart counted", after(began.elapsed())));
    teller.run(stage, &["get", "pods"])
}

async fn delete_pod(stage: &Stage, teller: &Teller, pods: &mut Pods) -> Act {
    teller.act("A pod is lost", "Current state no longer is desired state, and the controller sees it.");
    let victim = first(pods)?;
    let began = Instant::now();
    teller.run(stage, &["delete", "pod", &victim.name, "--wait=false"])?;
    pods.until("another pod takes its place", |pods| {
        running(pods, 3) && pods.values().filter(|p| !p.deleting).all(|p| p.uid != victim.uid)
    })
    .await?;
    teller.seen(&format!("another pod took its place {}", after(began.elapsed())));
    pods.until("the deleted pod is gone", |pods| !pods.contains_key(&victim.name)).await?;
    teller.run(stage, &["get", "pods"])
}

async fn scale(stage: &Stage, teller: &Teller, pods: &mut Pods) -> Act {
    teller.act("More of the same", "Desired state changes; the rest follows.");
    let began = Instant::now();
    teller.run(stage, &["scale", "rc", "hello", "--replicas=10"])?;
    pods.until("ten pods run", |pods| running(pods, 10)).await?;
    teller.seen(&format!("ten pods run {}", after(began.elapsed())));
    teller.run(stage, &["get", "rc"])
}

async fn refuse(stage: &Stage, teller: &Teller, pods: &mut Pods) -> Act {
    teller.act("What cannot be", "A pod that asks for a thousand cores stays pending and says why.");
    teller.run_with(stage, &["create", "-f", "-"], TOO_BIG)?;
    pods.until("the pod says why it cannot run", |pods| {
        pods.get("too-big").is_some_and(|pod| pod.unschedulable().is_some())
    })
    .await?;
    let why = pods.now().get("too-big").and_then(Pod::unschedulable).unwrap_or_default();
    teller.seen(&why);
    teller.run(stage, &["delete", "pod", "too-big"])
}

async fn kill_cluster(stage: &mut Stage, teller: &Teller) -> Act<Pods> {
    teller.act(
        "Troupe itself dies",
        "Master and node are killed, without a chance to say goodbye. Containers do not depend on them.",
    );
    let client = Client::from_kubeconfig(stage.kubeconfig()).map_err(|e| e.to_string())?;
    let mut pods = Pods::watch(&client).await?;
    pods.until("ten pods run", |pods| running(pods, 10)).await?;
    let before = lives(pods.now())?;
    let address = first(&pods)?.address().ok_or("a running pod has no address")?;
    drop(pods);
    teller.command(&format!("kill -9 {}   # troupe up", stage.pid()));
    stage.kill()?;
    teller.command(&format!("curl http://{address}:8080/"));
    teller.text(&process::fetch(&address).await?);
    teller.command("troupe up");
    let took = stage.start().await?;
    // Another process has another port.
    let client = Client::from_kubeconfig(stage.kubeconfig()).map_err(|e| e.to_string())?;
    let mut pods = Pods::watch(&client).await?;
    pods.until("ten pods run", |pods| running(pods, 10)).await?;
    let now = lives(pods.now())?;
    if now != before {
        return Err(format!("the pods are not the ones from before: {before:?} became {now:?}"));
    }
    teller.seen(&format!(
        "ready {}: the same ten pods, the same ten processes, and not one restart more",
        after(took)
    ));
    teller.run(stage, &["get", "rc"])?;
    Ok(pods)
}

async fn delete_all(stage: &Stage, teller: &Teller, pods: &mut Pods) -> Act {
    teller.act("The end", "Without the controller its pods go as well.");
    let began = Instant::now();
    teller.run(stage, &["delete", "rc", "hello"])?;
    pods.until("no pod is left", |pods| pods.is_empty()).await?;
    teller.seen(&format!("ten pods are gone {}", after(began.elapsed())));
    teller.run(stage, &["get", "events", "--field-selector", "involvedObject.kind=ReplicationController"])
}

/// Takes everything down and looks whether anything is left.
fn curtain(stage: &mut Stage, teller: &Teller) -> Act {
    let left = stage.close()?;
    if left.is_empty() {
        teller.note(
            "The cluster was stopped. No process, mount, network device, cgroup or file of it is left.",
        );
        Ok(())
    } else {
        Err(format!("something was left behind:\n  {}", left.join("\n  ")))
    }
}

fn running(pods: &pods::ByName, count: usize) -> bool {
    pods.values().filter(|p| !p.deleting && p.ready && p.labelled("hello")).count() == count
}

/// Which process each pod's container is, and how often it was started.
fn lives(pods: &pods::ByName) -> Act<Vec<(String, i32, u64)>> {
    pods.values().map(|pod| Ok((pod.uid.clone(), pod.process()?, pod.restarts))).collect()
}

fn first(pods: &Pods) -> Act<Pod> {
    let alive = |pod: &&Pod| pod.ready && !pod.deleting;
    pods.now().values().find(alive).cloned().ok_or_else(|| "no pod runs".into())
}

fn after(time: Duration) -> String {
    format!("after {:.2} s", time.as_secs_f64())
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}
