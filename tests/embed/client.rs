//! The typed client: the API's rules, without HTTP.

use k8s_openapi::{
    api::core::v1::{ConfigMap, Namespace, Pod, ReplicationController, Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use troupe::{ClientError, WatchEvent, messages::wire::LogRequest};

use crate::support::{controller, meta, pod_spec, running, simulated, system};

#[test]
fn objects_are_admitted_swapped_and_watched_as_through_the_api() {
    system(async {
        let directory = tempfile::tempdir().unwrap();
        let cluster = simulated(directory.path()).await;
        let client = cluster.client();
        let mut watcher = client.watch::<ConfigMap>(Some("default"));
        assert!(matches!(watcher.next().await, WatchEvent::Listed(_)));

        let mut map = ConfigMap { metadata: meta("m"), ..ConfigMap::default() };
        let made = client.create(&map).await.unwrap();
        assert!(made.metadata.uid.is_some() && made.metadata.creation_timestamp.is_some());
        assert!(matches!(client.create(&map).await, Err(ClientError::AlreadyExists(_))));
        map.metadata.name = None;
        map.metadata.generate_name = Some("m-".into());
        let generated = client.create(&map).await.unwrap();
        assert!(generated.metadata.name.unwrap().len() > 2);

        let (mut mine, mut yours) = (made.clone(), made);
        mine.data = Some([("by".to_owned(), "me".to_owned())].into());
        yours.data = Some([("by".to_owned(), "you".to_owned())].into());
        let mine = client.replace(&mine).await.unwrap();
        assert!(matches!(client.replace(&yours).await, Err(ClientError::Conflict(_))));
        yours.metadata.resource_version = None;
        assert!(matches!(client.replace(&yours).await, Err(ClientError::Refused(_))));
        let named = client.get::<ConfigMap>("default", "m").unwrap().unwrap();
        assert_eq!(named, mine);

        client.delete::<ConfigMap>("default", "m").await.unwrap();
        assert!(client.get::<ConfigMap>("default", "m").unwrap().is_none());
        assert!(matches!(client.delete::<ConfigMap>("default", "m").await, Err(ClientError::NotFound(_))));
        let mut heard = Vec::new();
        while heard.len() < 4 {
            heard.push(match watcher.next().await {
                WatchEvent::Applied(map) if map.data.is_some() => "changed",
                WatchEvent::Applied(_) => "made",
                WatchEvent::Deleted(map) => {
                    assert_eq!(map.metadata.name.as_deref(), Some("m"));
                    "deleted"
                }
                WatchEvent::Listed(_) => "listed",
            });
        }
        assert_eq!(heard, ["made", "made", "changed", "deleted"]);
        cluster.stop().await;
    });
}

#[test]
fn what_breaks_the_rules_is_refused_with_the_field() {
    system(async {
        let directory = tempfile::tempdir().unwrap();
        let cluster = simulated(directory.path()).await;
        let client = cluster.client();
        let mut bad = controller("bad", 1);
        bad.spec.as_mut().unwrap().selector = Some([("app".to_owned(), "other".to_owned())].into());
        let error = client.create(&bad).await.unwrap_err().to_string();
        assert!(error.contains("spec.template.metadata.labels"), "{error}");
        let mut homeless = controller("homeless", 1);
        homeless.metadata.namespace = Some("nowhere".into());
        let error = client.create(&homeless).await.unwrap_err();
        assert!(matches!(&error, ClientError::NotFound(key) if &*key.name == "nowhere"), "{error}");
        let mut unaccounted = Pod { metadata: meta("unaccounted"), spec: Some(pod_spec(&[])), status: None };
        unaccounted.spec.as_mut().unwrap().service_account_name = Some("missing".into());
        let error = client.create(&unaccounted).await.unwrap_err().to_string();
        assert!(error.contains("serviceaccount \"missing\" not found"), "{error}");
        assert!(matches!(client.list::<Pod>(None, "a=b=c"), Err(ClientError::Refused(_))));
        assert!(matches!(client.scale("default", "none", 1).await, Err(ClientError::NotFound(_))));
        let port =
            ServicePort { port: 80, target_port: Some(IntOrString::Int(80)), ..ServicePort::default() };
        let mut service = Service {
            metadata: meta("web"),
            spec: Some(ServiceSpec { ports: Some(vec![port]), ..ServiceSpec::default() }),
            status: None,
        };
        assert!(matches!(client.create(&service).await, Err(ClientError::Refused(_))));
        service.spec.as_mut().unwrap().cluster_ip = Some("None".into());
        client.create(&service).await.unwrap();
        assert!(matches!(client.delete::<Namespace>("", "default").await, Err(ClientError::Refused(_))));
        cluster.stop().await;
    });
}

#[test]
fn a_deleted_controller_takes_its_pods_with_it_and_logs_come_from_the_node() {
    system(async {
        let directory = tempfile::tempdir().unwrap();
        let cluster = simulated(directory.path()).await;
        let client = cluster.client();
        let spec = pod_spec(&[("SIM_LOG", "a line")]);
        client.create(&Pod { metadata: meta("talks"), spec: Some(spec), status: None }).await.unwrap();
        running(&client, 1).await;
        let mut stream = client.logs("default", "talks", LogRequest::default()).await.unwrap();
        let mut text = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut stream.read, &mut text).await.unwrap();
        assert_eq!(text, "a line\n");
        let other = LogRequest { container: "other".into(), ..LogRequest::default() };
        assert!(matches!(client.logs("default", "talks", other).await, Err(ClientError::Stream(_))));

        client.create(&controller("pair", 2)).await.unwrap();
        running(&client, 3).await;
        client.delete::<ReplicationController>("default", "pair").await.unwrap();
        running(&client, 1).await;
        cluster.stop().await;
    });
}
