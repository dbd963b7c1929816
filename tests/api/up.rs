//! The API of a whole cluster: `troupe up` with simulated containers, and real kubectl.

use std::{
    fs::File,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use crate::{kubectl::kubectls, raw::eventually};

/// A running `troupe up`, ended when dropped.
struct Up {
    process: Child,
    dir: tempfile::TempDir,
}

impl Drop for Up {
    fn drop(&mut self) {
        // It may have ended by itself, which a test has noticed then.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A client, killed when dropped.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Up {
    fn start() -> Up {
        let dir = tempfile::tempdir().unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_troupe"))
            .args(["up", "--runtime", "sim", "--node-name", "n1", "--api", "127.0.0.1:0", "--data-dir"])
            .arg(dir.path().join("data"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("troupe starts");
        let mut up = Up { process, dir };
        eventually("ready", || {
            if let Some(status) = up.process.try_wait().unwrap() {
                panic!("troupe up has ended with {status}: {}", up.log());
            }
            up.dir.path().join("data/ready").exists().then_some(())
        });
        up
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    fn command(&self, kubectl: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(kubectl);
        command
            .args(arguments)
            .env("KUBECONFIG", self.dir.path().join("data/admin.kubeconfig"))
            .env("HOME", self.dir.path())
            .current_dir(self.dir.path());
        command
    }

    fn run(&self, kubectl: &Path, arguments: &[&str]) -> Output {
        self.command(kubectl, arguments).output().expect("kubectl starts")
    }

    #[track_caller]
    fn ok(&self, kubectl: &Path, arguments: &[&str]) -> String {
        let output = self.run(kubectl, arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "kubectl {arguments:?}\n{out}\n{err}\n{}", self.log());
        out.into_owned()
    }
}

const RC: &str = "
apiVersion: v1
kind: ReplicationController
metadata: {name: web}
spec:
  replicas: 2
  selector: {app: web}
  template:
    metadata: {labels: {app: web}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: x, ports: [{containerPort: 80}]}]}
";

#[test]
fn kubectl_keeps_a_controllers_pods_running() {
    // The newest: the other tests have shown that all versions read the same.
    if let Some(kubectl) = kubectls().pop() {
        let up = Up::start();
        std::fs::write(up.dir.path().join("rc.yaml"), RC).unwrap();
        let ok = |arguments: &[&str]| up.ok(&kubectl, arguments);
        ok(&["create", "-f", "rc.yaml"]);
        ok(&["wait", "rc/web", "--for=jsonpath={.status.readyReplicas}=2", "--timeout=30s"]);
        ok(&["expose", "rc", "web", "--port=80"]);
        eventually("endpoints", || {
            let described = ok(&["describe", "svc", "web"]);
            let line = described.lines().find(|l| l.starts_with("Endpoints:")).unwrap().to_owned();
            (line.matches(":80").count() == 2).then_some(())
        });
        let names = ok(&["get", "pods", "-l", "app=web", "-o", "name"]);
        let first = names.lines().next().expect("a pod");
        ok(&["delete", first, "--timeout=30s"]);
        ok(&["wait", "rc/web", "--for=jsonpath={.status.readyReplicas}=2", "--timeout=30s"]);
        ok(&["scale", "rc", "web", "--replicas=3"]);
        ok(&["wait", "rc/web", "--for=jsonpath={.status.readyReplicas}=3", "--timeout=30s"]);
        let described = ok(&["describe", "rc", "web"]);
        assert!(described.contains("3 current / 3 desired"), "{described}");
        let events = ok(&["get", "events", "--field-selector", "reason=SuccessfulCreate"]);
        assert!(events.lines().count() >= 4, "{events}");
        ok(&["drain", "n1", "--force", "--timeout=30s"]);
        let pending = ok(&["get", "pods", "--field-selector=status.phase=Pending", "-o", "name"]);
        assert_eq!(pending.lines().count(), 3, "{pending}");
        ok(&["uncordon", "n1"]);
        ok(&["wait", "rc/web", "--for=jsonpath={.status.readyReplicas}=3", "--timeout=30s"]);
        ok(&["delete", "rc", "web", "--cascade=foreground", "--timeout=30s"]);
        assert_eq!(ok(&["get", "pods", "-o", "name"]), "");
    }
}

#[test]
fn a_client_that_goes_while_nothing_is_said_leaves_no_stream_behind() {
    if let Some(kubectl) = kubectls().pop() {
        let up = Up::start();
        up.ok(&kubectl, &["run", "quiet", "--image=x"]);
        up.ok(&kubectl, &["wait", "--for=condition=Ready", "pod/quiet", "--timeout=30s"]);
        let open = |count: usize| {
            let metrics = up.ok(&kubectl, &["get", "--raw", "/metrics"]);
            metrics.lines().any(|line| *line == *format!("troupe_api_streams {count}")).then_some(())
        };
        let follow = |arguments: &[&str]| {
            let mut command = up.command(&kubectl, arguments);
            Guard(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("kubectl starts"))
        };
        let clients = [follow(&["logs", "-f", "quiet"]), follow(&["get", "pods", "-w"])];
        eventually("both follow", || open(2));
        drop(clients);
        eventually("nobody does", || open(0));
        assert!(!up.log().contains("Send data error"), "{}", up.log());
    }
}

#[test]
fn an_api_on_loopback_has_endpoints_without_addresses_and_complains_of_nothing() {
    if let Some(kubectl) = kubectls().pop() {
        let up = Up::start();
        eventually("endpoints", || {
            let output = up.run(&kubectl, &["get", "endpoints", "kubernetes", "-o", "jsonpath={.subsets}"]);
            output.status.success().then(|| assert_eq!(String::from_utf8_lossy(&output.stdout), ""))
        });
        let ready = up.ok(&kubectl, &["get", "--raw", "/readyz?verbose"]);
        assert!(ready.contains("[+]store ok"), "{ready}");
        let metrics = up.ok(&kubectl, &["get", "--raw", "/metrics"]);
        for name in ["troupe_api_requests_total{", "troupe_store_commits_total{", "troupe_links_opened_total"]
        {
            assert!(metrics.contains(name), "{name} is not in\n{metrics}");
        }
        assert!(!up.log().contains("ERROR"), "{}", up.log());
    }
}
