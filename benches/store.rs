//! Durable commits per second, beside a bare append + fdatasync of the same bytes in the same batches.
//!
//! `cargo bench --bench store [DIR]`; DIR (default: the temporary directory) says which disk. Each figure is the median
//! of rounds that take turns, so that a noisy neighbour hits all of them alike.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use actix::{Actor, Addr};
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use troupe::{
    actors::store::StoreActor,
    messages::{Commit, Durability, View, Write},
    model::{Object, Revision, Sealed, seal},
    store::{Backend, Batch, DataDir, Durable, Force, Record},
};

const ROUNDS: usize = 9;
/// How long one round of one figure takes, about.
const ROUND: Duration = Duration::from_millis(300);
/// An ordinary pod's document.
const DOCUMENT_BYTES: usize = 2500;

fn main() {
    // cargo passes `--bench`; what is no flag is ours.
    let base =
        std::env::args().skip(1).find(|a| !a.starts_with('-')).map_or_else(std::env::temp_dir, PathBuf::from);
    let temp = tempfile::tempdir_in(base).expect("the directory can be written");
    println!("documents of {DOCUMENT_BYTES} bytes, durable, per second (medians of {ROUNDS} rounds)");
    println!("{:>6} {:>12} {:>12} {:>12} {:>8}", "batch", "bare", "backend", "store", "of bare");
    for size in [1, 8, 16, 64, 256] {
        let dir = temp.path().join(size.to_string());
        let [bare, backend, store] = compare(&dir, size);
        println!("{size:>6} {bare:>12.0} {backend:>12.0} {store:>12.0} {:>7.0}%", store / bare * 100.0);
    }
}

fn compare(dir: &Path, size: usize) -> [f64; 3] {
    let open = |name: &str| DataDir::open(&dir.join(name)).expect("a new directory");
    let (backend_dir, store_dir) = (open("backend"), open("store"));
    let mut file = File::create(dir.join("bare")).expect("a new file");
    let mut backend = Durable::open(&backend_dir).expect("a new database");
    let mut figures = [const { Vec::new() }; 3];
    actix::System::new().block_on(async {
        let durable = Durable::open(&store_dir).expect("a new database");
        let (actor, view) = StoreActor::open(durable).expect("a new store");
        let store = actor.start();
        let mut next = 0;
        for _ in 0..ROUNDS {
            figures[0].push(bare(&mut file, size));
            figures[1].push(append(&mut backend, size, &mut next));
            figures[2].push(commit(&store, &view, size, &mut next).await);
        }
    });
    figures.map(|mut of| {
        of.sort_by(f64::total_cmp);
        of[of.len() / 2]
    })
}

fn bare(file: &mut File, size: usize) -> f64 {
    let bytes = vec![b'x'; DOCUMENT_BYTES * size];
    per_second(|| {
        file.write_all(&bytes).and_then(|()| file.sync_data()).expect("the disk works");
        size
    })
}

fn append(backend: &mut Durable, size: usize, next: &mut u64) -> f64 {
    let objects: Vec<Object> = (0..size)
        .map(|_| {
            *next += 1;
            document(*next).at(Revision(*next))
        })
        .collect();
    per_second(|| {
        let puts = objects.iter().map(Record::of).collect();
        backend.append(&Batch { puts, ..Batch::default() }, Force::Fsync).expect("the disk works");
        size
    })
}

/// So many clients, each of which creates one object after the other.
async fn commit(store: &Addr<StoreActor>, view: &View, size: usize, next: &mut u64) -> f64 {
    let prepared = size.max(64) * 40;
    let mut documents: Vec<Sealed> = (0..prepared).map(|n| document(*next + n as u64)).collect();
    *next += prepared as u64;
    let before = view.snapshot().len();
    let begun = Instant::now();
    let clients = (0..size).map(|_| {
        let share = documents.split_off(documents.len() - prepared / size);
        let store = store.clone();
        actix::spawn(async move {
            for document in share {
                if begun.elapsed() >= ROUND {
                    break;
                }
                let commit = Commit { writes: vec![Write::Create(document)], durability: Durability::Hard };
                store.send(commit).await.expect("the store runs").expect("the name is new");
            }
        })
    });
    futures_util::future::join_all(clients.collect::<Vec<_>>()).await;
    (view.snapshot().len() - before) as f64 / begun.elapsed().as_secs_f64()
}

fn per_second(mut once: impl FnMut() -> usize) -> f64 {
    let begun = Instant::now();
    let mut done = 0;
    while begun.elapsed() < ROUND {
        done += once();
    }
    done as f64 / begun.elapsed().as_secs_f64()
}

fn document(number: u64) -> Sealed {
    let name = format!("object-{number}");
    let padding = DOCUMENT_BYTES - 200;
    seal(&ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some("default".to_owned()),
            uid: Some(format!("uid-{number}")),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([("padding".to_owned(), "x".repeat(padding))])),
        ..ConfigMap::default()
    })
    .expect("name and uid are set")
}
