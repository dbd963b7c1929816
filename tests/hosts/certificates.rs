//! Certificates of nodes: forged, renewed, revoked.

use std::{fs, time::Duration};

use troupe::net::{Authority, csr::NodeKey, csr::validity};

use crate::{
    bed::{Bed, ready},
    harness::{check, controller, until},
};

#[test]
fn a_forged_certificate_gets_no_link_and_the_node_says_so() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut one) = (bed.host("m"), bed.host("one"));
    master.master(&[]);
    let (token, address) = (master.token(&[]), master.address.clone());
    one.node(&["--runtime", "sim", "--join", &address, "--token", &token, "--name", "one"]);
    master.until_node("one", "True");
    one.kill();
    // The same name and key, but another authority's signature.
    let pki = one.data.join("pki");
    let key = NodeKey::open(&pki.join("node.key")).unwrap();
    let forger = Authority::ephemeral().unwrap();
    let life = Duration::from_secs(3600);
    let forged = forger.certify_node(&"one".into(), &key.request().unwrap(), life).unwrap();
    let good = fs::read_to_string(pki.join("node.crt")).unwrap();
    fs::write(pki.join("node.crt"), forged).unwrap();
    let ran = one.run(&["node", "--runtime", "sim"]);
    assert_eq!(ran.code(), Some(3));
    assert!(ran.err().contains("another authority signed it"), "{}", ran.err());
    assert!(ran.err().contains("--token"), "{}", ran.err());
    assert!(master.said().contains("turned a peer away"));
    // The right one is as good as before.
    fs::write(pki.join("node.crt"), good).unwrap();
    one.node(&[]);
    master.until_node("one", "True");
}

#[test]
fn certificates_are_renewed_over_the_link_and_pods_do_not_notice() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut one) = (bed.host("m"), bed.host("one"));
    master.master(&["--node-certificate-life", "12s"]);
    one.join(&master);
    master.until_node("one", "True");
    master.apply(&controller("web", 1, &[]));
    master.until_pods(1);
    let before = one.containers();
    assert!(!before.is_empty());
    let end = || validity(&fs::read_to_string(one.data.join("pki/node.crt")).unwrap()).unwrap().1;
    let first = end();
    // Well beyond the first one's end.
    until("the certificate was renewed twice", || check(end() >= first + 12, || (end() - first).to_string()));
    until("the first certificate is over", || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        check(now as i64 > first + 1, || now.to_string())
    });
    master.until_node("one", "True");
    assert_eq!(one.containers(), before, "no container was touched");
    let pods = master.until_pods(1);
    assert_eq!(pods[0]["status"]["containerStatuses"][0]["restartCount"], 0);
    let events = master.get(&["events"]).unwrap();
    let lost = events["items"].as_array().unwrap().iter().any(|e| e["reason"] == "NodeNotReady");
    assert!(!lost, "the node was never taken for lost");
    // What is on disk is good for a start.
    one.kill();
    one.node(&[]);
    master.until_node("one", "True");
    assert_eq!(one.containers(), before);
}

#[test]
fn a_certificate_that_a_full_disk_does_not_keep_is_told_of_at_the_master_until_it_is_kept() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut one) = (bed.host("m"), bed.host("one"));
    master.master(&["--node-certificate-life", "12s"]);
    one.small_disk(64);
    let token = master.token(&[]);
    one.node(&["--runtime", "sim", "--join", &master.address, "--token", &token, "--name", "one"]);
    master.until_node("one", "True");
    let event = |reason: &str| {
        until(&format!("describe shows {reason}"), || {
            let shown = master.kubectl(&["describe", "node", "one"]).result()?;
            let line = shown.lines().find(|line| line.split_whitespace().nth(1) == Some(reason));
            line.map(str::to_owned).ok_or(shown)
        })
    };
    one.fill(0);
    let line = event("CertificateNotKept");
    assert!(line.contains("Warning") && line.contains("No space left on device"), "{line}");
    one.empty();
    event("CertificateKept");
}

#[test]
fn a_deleted_node_is_sent_away_for_good_until_it_joins_again() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut one) = (bed.host("m"), bed.host("one"));
    master.master(&[]);
    let (token, address) = (master.token(&[]), master.address.clone());
    one.node(&["--runtime", "sim", "--join", &address, "--token", &token, "--name", "one"]);
    master.until_node("one", "True");
    master.kubectl(&["delete", "node", "one"]).ok();
    assert_eq!(one.until_ended(), Some(3));
    let said = one.said();
    assert!(said.contains("it was deleted") && said.contains("to join again: troupe node"), "{said}");
    // Not by its certificate, also not after the master's restart…
    let ran = one.run(&["node"]);
    assert_eq!(ran.code(), Some(3), "{}", ran.err());
    master.kill();
    master.master(&[]);
    let ran = one.run(&["node"]);
    assert_eq!(ran.code(), Some(3), "{}", ran.err());
    assert!(ran.err().contains("it was deleted"), "{}", ran.err());
    assert!(master.get(&["node", "one"]).is_err(), "it did not come back by itself");
    // …nor as its service is started, with a token in a file that is still good…
    let file = one.data.join("join-token");
    fs::write(&file, format!("{token}\n")).unwrap();
    let ran = one.run(&["node", "--join", &address, "--token-file", file.to_str().unwrap()]);
    assert_eq!(ran.code(), Some(3), "{}", ran.err());
    assert!(ran.err().contains("the token is not used"), "{}", ran.err());
    assert!(!file.exists() && master.get(&["node", "one"]).is_err());
    // …but by a token that somebody names.
    one.node(&["--join", &address, "--token", &token]);
    master.until_node("one", "True");
}

#[test]
fn the_masters_own_certificates_are_renewed_and_no_connection_notices() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut one) = (bed.host("m"), bed.host("one"));
    master.master(&["--certificate-life", "15s"]);
    let (token, address) = (master.token(&[]), master.address.clone());
    one.node(&["--runtime", "sim", "--join", &address, "--token", &token, "--name", "one"]);
    master.until_node("one", "True");
    let kubeconfig = master.data.join("admin.kubeconfig");
    let old = master.data.with_file_name("old.kubeconfig");
    fs::copy(&kubeconfig, &old).unwrap();
    let end = || {
        let config: serde_json::Value =
            serde_yaml_ng::from_str(&fs::read_to_string(&kubeconfig).unwrap()).unwrap();
        let pem = config["users"][0]["user"]["client-certificate-data"].clone();
        let pem: k8s_openapi::ByteString = serde_json::from_value(pem).unwrap();
        validity(std::str::from_utf8(&pem.0).unwrap()).unwrap().1
    };
    let first = end();
    // A client that stays connected all the while.
    let mut watching = master.command(&crate::harness::kubectl().unwrap());
    watching.args(["get", "configmaps", "-w", "-o", "name"]).env("KUBECONFIG", &kubeconfig);
    let watched = master.data.with_file_name("watched");
    watching.stdout(fs::File::create(&watched).unwrap()).stderr(std::process::Stdio::null());
    let mut watching = Watching(watching.spawn().unwrap());
    let seen = |name: &str| {
        let text = fs::read_to_string(&watched).unwrap();
        check(text.contains(name), || text.clone())
    };
    until("the watch has begun", || seen("kube-root-ca.crt"));
    until("the certificates were renewed twice", || {
        check(end() >= first + 15, || (end() - first).to_string())
    });
    until("the first ones are over", || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        check(now as i64 > first + 1, || now.to_string())
    });
    // Who connects now is shown a good one, and shows the good one of the file.
    master.kubectl(&["create", "configmap", "later"]).ok();
    let refused = master.run(&["get", "nodes", "--kubeconfig", old.to_str().unwrap()]);
    assert_eq!(refused.code(), Some(1), "{}", refused.out());
    // Who was connected still is: the watch…
    until("the watch goes on", || seen("configmap/later"));
    assert!(watching.0.try_wait().unwrap().is_none());
    // …and the link, which is older than any certificate.
    let status = master.run(&["cluster", "status", "-o", "json"]).ok();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let age = status["nodes"][0]["link"]["seconds"].as_f64().unwrap();
    assert!(age > 15.0, "{age} s");
    // Another link is made by another certificate.
    one.kill();
    one.node(&[]);
    master.until_node("one", "True");
}

/// An authority whose certificate ends in so many days, in a directory where no master has been.
fn authority_that_ends(data: &std::path::Path, days: u64) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "troupe-ca");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::DigitalSignature];
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + Duration::from_secs(days * 86_400 + 60);
    let pki = data.join("pki");
    fs::create_dir_all(&pki).unwrap();
    fs::write(pki.join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(pki.join("ca.key"), key.serialize_pem()).unwrap();
}

#[test]
fn an_authority_that_ends_soon_is_told_of_and_a_new_certificate_over_its_key_is_all_that_is_needed() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut one, mut two) = (bed.host("m"), bed.host("one"), bed.host("two"));
    authority_that_ends(&master.data, 50);
    master.master(&[]);
    let token = master.token(&[]);
    one.node(&["--runtime", "sim", "--join", &master.address, "--token", &token, "--name", "one"]);
    master.until_node("one", "True");
    let status = master.run(&["cluster", "status"]).ok();
    assert!(status.contains("WARNING: the certificate of the authority ends in 50d"), "{status}");
    assert!(!status.contains("of the master ends"), "{status}");
    assert!(master.said().contains("ends soon"));
    // What operations.md says.
    assert_eq!(master.stop(), Some(0));
    let pki = master.data.join("pki");
    fs::rename(pki.join("ca.crt"), pki.join("ca.crt.old")).unwrap();
    master.master(&[]);
    let status = master.run(&["cluster", "status"]).ok();
    assert!(!status.contains("WARNING") && status.contains("Certificates: authority until 20"), "{status}");
    // The node links again as it is, and also when it is started anew with what it has; others join by a token from before.
    master.until_node("one", "True");
    one.kill();
    one.node(&[]);
    master.until_node("one", "True");
    two.node(&["--runtime", "sim", "--join", &master.address, "--token", &token, "--name", "two"]);
    master.until_node("two", "True");
    assert_ne!(
        fs::read(one.data.join("pki/ca.crt")).unwrap(),
        fs::read(two.data.join("pki/ca.crt")).unwrap()
    );
}

/// A process, ended when dropped.
struct Watching(std::process::Child);

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
