//! Images that follow pods from machine to machine, over the master's link, when there is no registry.

use std::{fs, path::Path, path::PathBuf};

use serde_json::{Value, json};

use crate::{
    bed::{Bed, Host, ready},
    engine,
    harness::{check, program, text, until},
};

/// A name whose registry nobody reaches.
const APP: &str = "nowhere.example/app:1";

/// busybox on the machine, if these tests can run at all.
fn busybox() -> Option<PathBuf> {
    if !ready() {
        return None;
    }
    let busybox = program("busybox");
    if busybox.is_none() {
        assert!(std::env::var_os("CI").is_none(), "CI is set, but there is no busybox");
        eprintln!("skipped: no busybox (apt install busybox-static)");
    }
    busybox
}

/// A root file system of busybox and a word, as a tar.
fn rootfs(busybox: &Path, word: &str, tar: &Path) {
    let mut archive = tar::Builder::new(fs::File::create(tar).unwrap());
    archive.append_path_with_name(busybox, "bin/busybox").unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(word.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    archive.append_data(&mut header, "word", word.as_bytes()).unwrap();
    archive.finish().unwrap();
}

/// Imports an image on a master's cluster, `to` one node or as it is by itself; what that printed.
fn import(master: &Host, busybox: &Path, word: &str, name: &str, to: Option<&str>) -> String {
    let tar = master.data.with_extension("tar");
    rootfs(busybox, word, &tar);
    let mut args = vec!["image", "import", tar.to_str().unwrap(), name];
    args.extend(to.into_iter().flat_map(|node| ["--node", node]));
    master.run(&args).ok()
}

/// A pod on a node that says the image's word and stays.
fn pod(name: &str, node: &str, image: &str) -> Value {
    let script = "/bin/busybox cat /word; echo; exec /bin/busybox sleep 100000";
    let container = json!({"name": "c", "image": image, "command": ["/bin/busybox", "sh", "-c", script]});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container]}})
}

fn until_says(master: &Host, pod: &str, word: &str) {
    until(&format!("pod {pod} says {word}"), || {
        let said = master.kubectl(&["logs", pod]).result()?;
        check(said.trim() == word, || said.clone())
    });
}

/// Waits for an event on a pod; its message.
fn until_event(master: &Host, pod: &str, reason: &str, with: &str) -> String {
    until(&format!("{reason} with {with:?} on {pod}"), || {
        let field = format!("involvedObject.name={pod},reason={reason}");
        let events = master.get(&["events", "--field-selector", &field])?;
        let all = events["items"].as_array().cloned().unwrap_or_default();
        let found = all.iter().map(|event| text(&event["message"]).to_owned()).find(|m| m.contains(with));
        found.ok_or_else(|| format!("{all:?}"))
    })
}

/// Waits until a pod's container waits for its image, for a reason with these words.
fn until_waits(master: &Host, pod: &str, with: &str) {
    until(&format!("pod {pod} waits: {with}"), || {
        let object = master.get(&["pod", pod])?;
        let waiting = &object["status"]["containerStatuses"][0]["state"]["waiting"];
        let holds = text(&waiting["reason"]).contains("Pull") && text(&waiting["message"]).contains(with);
        check(holds, || waiting.to_string())
    });
}

#[test]
fn an_image_that_was_loaded_once_runs_on_every_machine_and_a_newer_one_takes_its_place() {
    let Some(busybox) = busybox() else { return };
    let mut bed = Bed::new();
    let (master, _one, two) = bed.trio();
    let printed = import(&master, &busybox, "old", APP, Some("one"));
    assert_eq!(printed.trim(), format!("{APP} loaded on one"));
    master.apply(&pod("first", "two", APP));
    until_says(&master, "first", "old");
    let pulled = until_event(&master, "first", "Pulled", "from node");
    assert!(
        pulled.starts_with(&format!("Successfully pulled image \"{APP}\" from node \"one\" in ")),
        "{pulled}"
    );
    until_event(&master, "first", "Pulling", "from node \"one\"");
    until("both are shown to have it", || {
        let shown = master.run(&["image", "ls"]).ok();
        let line = shown.lines().find(|line| line.starts_with(APP)).unwrap_or_default().to_owned();
        check(line.ends_with("one,two"), || shown.clone())
    });
    // Without a tag a registry would have to be asked each time; what was brought by hand answers everywhere.
    let latest = "nowhere.example/app:latest";
    import(&master, &busybox, "newest", latest, Some("one"));
    master.apply(&pod("always", "two", "nowhere.example/app"));
    until_says(&master, "always", "newest");
    master.kubectl(&["delete", "pod", "always"]).ok();
    // Another image under the name: no machine goes on with the earlier one.
    let printed = import(&master, &busybox, "newer", latest, None);
    assert_eq!(printed.trim(), format!("{latest} loaded on one\n{latest} loaded on two"));
    // It is taken from where it was loaded, also when the machine's own is an older copy.
    let tar = master.data.with_extension("tar");
    rootfs(&busybox, "by name", &tar);
    let file = tar.to_str().unwrap();
    master.run(&["image", "import", file, "nowhere.example/named:latest", "--node", "one"]).ok();
    master.apply(&pod("copy", "two", "nowhere.example/named"));
    until_says(&master, "copy", "by name");
    rootfs(&busybox, "by name, again", &tar);
    master.run(&["image", "import", file, "nowhere.example/named:latest", "--node", "one"]).ok();
    master.apply(&pod("again", "two", "nowhere.example/named"));
    until_says(&master, "again", "by name, again");
    // What nobody has is told as its registry's failure alone.
    master.apply(&pod("nothing", "two", "nowhere.example/nothing:1"));
    until_waits(&master, "nothing", "nowhere.example");
    assert!(!two.containers().is_empty());
}

#[test]
fn a_machine_that_gives_other_bytes_is_not_believed_and_told_of() {
    let Some(busybox) = busybox() else { return };
    let mut bed = Bed::new();
    let (master, one, two) = bed.trio();
    import(&master, &busybox, "good", APP, Some("one"));
    let layers = one.data.join("images/layers");
    let layer = fs::read_dir(&layers).unwrap().flatten().map(|entry| entry.path().join("fs/word"));
    let word = layer.into_iter().find(|path| path.exists()).unwrap();
    fs::write(&word, "evil").unwrap();
    master.apply(&pod("p", "two", APP));
    until_waits(&master, "p", "other nodes have it, but: node one: ");
    until_event(&master, "p", "Failed", "from other nodes: node one: ");
    assert!(two.containers().is_empty());
    // The next try may be on its way.
    let staging = two.data.join("images/staging");
    until("nothing is left of it", || {
        let staged = fs::read_dir(&staging).map_err(|error| error.to_string())?.count();
        check(staged == 0, || format!("{staged} there"))
    });
    // With the right bytes the next try is good.
    fs::write(&word, "good").unwrap();
    until_says(&master, "p", "good");
}

#[test]
fn an_image_whose_machine_falls_silent_meanwhile_comes_when_it_is_back() {
    let Some(busybox) = busybox() else { return };
    let mut bed = Bed::new();
    let (master, one, _two) = bed.trio();
    import(&master, &busybox, "there", APP, Some("one"));
    one.freeze();
    master.apply(&pod("p", "two", APP));
    // Its registry is not asked meanwhile: what it has under the name is a stranger's.
    until_waits(&master, "p", "who has it is not connected: one.");
    one.thaw();
    master.until_node("one", "True");
    until_says(&master, "p", "there");
    until_event(&master, "p", "Pulled", "from node \"one\"");
}

/// Waits until a node says that it shares no images.
fn until_apart(master: &Host, node: &str) {
    until(&format!("node {node} says that it shares no images"), || {
        let object = master.get(&["node", node])?;
        let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let off = all.iter().any(|of| of["type"] == "ImageSharing" && of["status"] == "False");
        check(off, || object["status"]["conditions"].to_string())
    });
}

#[test]
fn where_it_is_switched_off_images_stay_where_they_are_and_archives_go_to_each_node() {
    let Some(busybox) = busybox() else { return };
    let mut bed = Bed::new();
    let (mut master, mut one, mut two) = (bed.host("m"), bed.host("one"), bed.host("two"));
    master.master(&[]);
    one.join(&master);
    let token = master.token(&[]);
    two.node(&["--join", &master.address, "--token", &token, "--name", "two", "--no-image-sharing"]);
    ["one", "two"].iter().for_each(|name| master.until_node(name, "True"));
    until_apart(&master, "two");
    // That node takes none, and is therefore sent its own.
    import(&master, &busybox, "there", APP, Some("one"));
    master.apply(&pod("takes", "two", APP));
    until_waits(&master, "takes", "nowhere.example");
    let both = |name: &str| format!("{name} loaded on one\n{name} loaded on two");
    assert_eq!(import(&master, &busybox, "there", APP, None).trim(), both(APP));
    until_says(&master, "takes", "there");
    // Nor does it give any.
    let own = "nowhere.example/own:1";
    import(&master, &busybox, "own", own, Some("two"));
    master.apply(&pod("wants", "one", own));
    until_waits(&master, "wants", "nowhere.example");
    // Switched off at the master it is for all nodes, whatever they were started with.
    assert_eq!((master.stop(), two.stop()), (Some(0), Some(0)));
    master.master(&["--no-image-sharing"]);
    two.node(&[]);
    ["one", "two"].iter().for_each(|name| master.until_node(name, "True"));
    ["one", "two"].iter().for_each(|name| until_apart(&master, name));
    let third = "nowhere.example/third:1";
    import(&master, &busybox, "third", third, Some("one"));
    master.apply(&pod("third", "two", third));
    until_waits(&master, "third", "nowhere.example");
    assert_eq!(import(&master, &busybox, "third", third, None).trim(), both(third));
    until_says(&master, "third", "third");
    let events = master.get(&["events"]).unwrap()["items"].to_string();
    assert!(!events.contains("from node") && !events.contains("other nodes"), "{events}");
}

#[test]
fn images_follow_pods_to_a_docker_engine_and_from_there() {
    let Some(busybox) = busybox() else { return };
    if !engine::at_hand() {
        return;
    }
    let docker = engine::Lease::fresh();
    let mut bed = Bed::new();
    let (mut master, mut one, mut two) = (bed.host("m"), bed.host("one"), bed.host("two"));
    master.master(&[]);
    one.join(&master);
    two.docker = Some(docker.socket.clone());
    let token = master.token(&[]);
    let words = ["--join", &master.address, "--token", &token, "--name", "two", "--runtime", "docker"];
    two.node(&words);
    ["one", "two"].iter().for_each(|name| master.until_node(name, "True"));
    // What was brought to a native node runs on docker, …
    import(&master, &busybox, "native", APP, Some("one"));
    master.apply(&pod("there", "two", APP));
    until_says(&master, "there", "native");
    until_event(&master, "there", "Pulled", "from node \"one\"");
    // … what is in the engine runs on the native one, …
    let other = "nowhere.example/other:1";
    import(&master, &busybox, "docker", other, Some("two"));
    master.apply(&pod("here", "one", other));
    until_says(&master, "here", "docker");
    until_event(&master, "here", "Pulled", "from node \"two\"");
    // … and a newer one takes the place of the engine's copy.
    let latest = "nowhere.example/latest:latest";
    import(&master, &busybox, "old", latest, Some("one"));
    master.apply(&pod("old", "two", latest));
    until_says(&master, "old", "old");
    import(&master, &busybox, "new", latest, Some("one"));
    master.apply(&pod("new", "two", latest));
    until_says(&master, "new", "new");
}
