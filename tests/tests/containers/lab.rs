//! One network of its own for each test, and its cleaning up.

use std::{collections::HashMap, fmt::Debug, path::Path, process, thread};

use bollard::{
    Docker,
    models::{
        ContainerCreateBody, EndpointSettings, HealthConfig, HostConfig, NetworkCreateRequest, NetworkingConfig,
        PortBinding, VolumeCreateRequest,
    },
    query_parameters::{
        CreateContainerOptionsBuilder, ListContainersOptionsBuilder, ListNetworksOptionsBuilder,
        ListVolumesOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder, RemoveVolumeOptions,
        StartContainerOptions,
    },
};
use tokio::sync::OnceCell;
use tokio_stream::StreamExt;

use crate::node::Node;

/// On everything that tests make; its value is the process id of the run.
const LABEL: &str = "drizzle-test";
/// On everything of one lab; its value is the lab's name.
const LAB: &str = "drizzle-lab";

/// How the images are called here; see deploy/compose.yaml.
const TRACKER_IMAGE: &str = "drizzle-tracker-svc";
const PEER_IMAGE: &str = "drizzle-peer-svc";

/// Lines of each container's log that a failing test shows.
const SHOWN: &str = "40";

/// A network with containers; everything is gone when it is dropped.
#[derive(Debug)]
pub(crate) struct Lab {
    docker: Docker,
    name: String,
}

/// A container to be.
#[derive(Debug, Default)]
pub(crate) struct Recipe {
    alias: String,
    body: ContainerCreateBody,
    host: HostConfig,
}

impl Recipe {
    fn new(alias: &str, image: &str) -> Self {
        let body = ContainerCreateBody { image: Some(image.to_owned()), ..Default::default() };
        Self { alias: alias.to_owned(), body, host: HostConfig::default() }
    }

    /// The tracker, which all others find under this very name.
    pub(crate) fn tracker() -> Self {
        Self::new("tracker", TRACKER_IMAGE)
    }

    /// A peer with an empty folder.
    pub(crate) fn peer(alias: &str) -> Self {
        Self::new(alias, PEER_IMAGE)
    }

    /// A peer that shares a folder of this machine, which it can only read.
    pub(crate) fn seed(alias: &str, share: &Path) -> Self {
        let mut seed = Self::peer(alias).bind(&format!("{}:/share:ro", share.display()));
        seed.body.env = Some(vec!["DRIZZLE_DIR=/share".into(), "DRIZZLE_STATE_DIR=/data".into()]);
        seed
    }

    /// More arguments for the daemon.
    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.body.cmd = Some(args.iter().map(ToString::to_string).collect());
        self
    }

    /// A folder of this machine or a named volume, as `docker run -v` takes it.
    pub(crate) fn bind(mut self, bind: &str) -> Self {
        self.host.binds.get_or_insert_default().push(bind.to_owned());
        self
    }

    /// No more memory than this, swap included.
    pub(crate) fn memory(mut self, bytes: u64) -> Self {
        let bytes = i64::try_from(bytes).expect("a size that Docker can name");
        (self.host.memory, self.host.memory_swap) = (Some(bytes), Some(bytes));
        self
    }

    /// A disk of this size in place of a volume.
    pub(crate) fn disk(mut self, bytes: u64) -> Self {
        let options = format!("size={bytes},uid=10001,gid=10001,mode=0750");
        self.host.tmpfs = Some(HashMap::from([("/data".to_owned(), options)]));
        self
    }

    /// Published on a free port of this machine's loopback.
    pub(crate) fn publish(mut self, port: u16) -> Self {
        let binding = PortBinding { host_ip: Some("127.0.0.1".into()), host_port: Some("0".into()) };
        self.host.port_bindings = Some(HashMap::from([(format!("{port}/tcp"), Some(vec![binding]))]));
        self
    }
}

impl Lab {
    /// A network for one test. The first in a process removes what earlier runs left behind.
    pub(crate) async fn new(test: &str) -> Self {
        static SWEPT: OnceCell<()> = OnceCell::const_new();
        let docker = engine().await;
        SWEPT.get_or_init(|| sweep(&docker)).await;
        let lab = Self { docker, name: format!("drizzle-test-{}-{test}", process::id()) };
        let request = NetworkCreateRequest { name: lab.name.clone(), labels: Some(lab.labels()), ..Default::default() };
        lab.docker.create_network(request).await.expect("a network can be made");
        lab
    }

    /// The network's name.
    pub(crate) fn network(&self) -> &str {
        &self.name
    }

    /// Starts a container and waits until it is healthy.
    pub(crate) async fn start(&self, recipe: Recipe) -> Node {
        let node = self.create(recipe).await;
        node.until_healthy().await;
        node
    }

    /// A named volume, gone with the lab.
    pub(crate) async fn volume(&self, name: &str) -> String {
        let name = format!("{}-{name}", self.name);
        let request =
            VolumeCreateRequest { name: Some(name.clone()), labels: Some(self.labels()), ..Default::default() };
        self.docker.create_volume(request).await.expect("a volume can be made");
        name
    }

    async fn create(&self, recipe: Recipe) -> Node {
        let Recipe { alias, mut body, mut host } = recipe;
        // As tight as in deploy/compose.yaml.
        host.cap_drop = Some(vec!["ALL".into()]);
        host.readonly_rootfs = Some(true);
        host.network_mode = Some(self.name.clone());
        // As in deploy/compose.yaml: they are on a network of their own.
        body.env.get_or_insert_default().push("DRIZZLE_INSECURE=true".into());
        body.host_config = Some(host);
        body.hostname = Some(alias.clone());
        body.labels = Some(self.labels());
        // The image's own check, more often: the tests wait for it.
        let interval = Some(500_000_000);
        body.healthcheck = Some(HealthConfig { interval, retries: Some(60), ..Default::default() });
        let endpoint = EndpointSettings { aliases: Some(vec![alias.clone()]), ..Default::default() };
        let endpoints = HashMap::from([(self.name.clone(), endpoint)]);
        body.networking_config = Some(NetworkingConfig { endpoints_config: Some(endpoints) });

        let options = CreateContainerOptionsBuilder::new().name(&format!("{}-{alias}", self.name)).build();
        let made = self.docker.create_container(Some(options), body).await;
        let id = made.unwrap_or_else(|error| panic!("{alias} cannot be made: {error}")).id;
        let started = self.docker.start_container(&id, None::<StartContainerOptions>).await;
        started.unwrap_or_else(|error| panic!("{alias} cannot be started: {error}"));
        Node::new(self.docker.clone(), id, alias)
    }

    fn labels(&self) -> HashMap<String, String> {
        HashMap::from([(LABEL.into(), process::id().to_string()), (LAB.into(), self.name.clone())])
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let filter = format!("{LAB}={}", self.name);
        let show = thread::panicking();
        // Drop cannot await, and may itself run inside a runtime.
        let cleaner = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let docker = engine().await;
                if show {
                    show_logs(&docker, &filter).await;
                }
                remove(&docker, &filter, |_| true).await;
            });
        });
        // A failure to clean up is told by its own panic message; the next run sweeps.
        let _ = cleaner.join();
    }
}

/// The local engine, spoken to in its own version of the API.
pub(crate) async fn engine() -> Docker {
    let docker = Docker::connect_with_local_defaults().expect("a Docker socket");
    docker.negotiate_version().await.expect("a Docker engine answers")
}

/// Removes what runs left behind that no longer live.
async fn sweep(docker: &Docker) {
    remove(docker, LABEL, |run| !Path::new("/proc").join(run).exists()).await;
}

/// Removes containers, networks and volumes with this label whose run is `doomed`.
async fn remove(docker: &Docker, label: &str, doomed: impl Fn(&str) -> bool) {
    let filters = HashMap::from([("label".to_owned(), vec![label.to_owned()])]);
    let doomed = |labels: &HashMap<String, String>| labels.get(LABEL).is_some_and(|run| doomed(run));

    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    for container in docker.list_containers(Some(options)).await.unwrap_or_default() {
        if let Some(id) = container.id.filter(|_| container.labels.as_ref().is_some_and(&doomed)) {
            let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
            report(docker.remove_container(&id, Some(options)).await);
        }
    }
    let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
    for network in docker.list_networks(Some(options)).await.unwrap_or_default() {
        if let Some(id) = network.id.filter(|_| network.labels.as_ref().is_some_and(&doomed)) {
            report(docker.remove_network(&id).await);
        }
    }
    let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
    for volume in docker.list_volumes(Some(options)).await.ok().and_then(|list| list.volumes).unwrap_or_default() {
        if doomed(&volume.labels) {
            report(docker.remove_volume(&volume.name, None::<RemoveVolumeOptions>).await);
        }
    }
}

/// What cannot be removed now is removed by the next run.
fn report(removed: Result<(), impl Debug>) {
    if let Err(error) = removed {
        note(&format!("left behind: {error:?}"));
    }
}

async fn show_logs(docker: &Docker, label: &str) {
    let filters = HashMap::from([("label".to_owned(), vec![label.to_owned()])]);
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    for container in docker.list_containers(Some(options)).await.unwrap_or_default() {
        let Some(id) = container.id else { continue };
        note(&format!("--- {:?} {}", container.names.unwrap_or_default(), container.status.unwrap_or_default()));
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).tail(SHOWN).build();
        let mut logs = docker.logs(&id, Some(options));
        while let Some(Ok(line)) = logs.next().await {
            note(line.to_string().trim_end());
        }
    }
}

/// For whoever reads a test's output; stderr is this program's only way to tell.
#[allow(clippy::print_stderr)]
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}
