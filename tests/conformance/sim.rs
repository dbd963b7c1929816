//! The simulated runtime under test: its machine stays when the handle goes, as containers do.

use std::{path::Path, sync::Arc};

use troupe::runtime::{
    ContainerRuntime, ContainerStatus,
    sim::{SimConfig, SimMachine, SimRuntime},
};

use super::harness::Harness;

pub struct Sim {
    machine: Arc<SimMachine>,
    runtime: Option<SimRuntime>,
}

impl Harness for Sim {
    async fn new(_: &Path) -> Sim {
        let machine = SimMachine::new(SimConfig { any_image: false, ..SimConfig::default() }).unwrap();
        Sim { runtime: Some(SimRuntime::open(Arc::clone(&machine))), machine }
    }

    fn runtime(&self) -> &dyn ContainerRuntime {
        self.runtime.as_ref().expect("the case closed it")
    }

    fn close(&mut self) {
        self.runtime = None;
    }

    fn reopen(&mut self) {
        self.runtime = Some(SimRuntime::open(Arc::clone(&self.machine)));
    }

    fn kill(&self, container: &ContainerStatus) {
        self.machine.kill(&container.id);
    }

    fn lose_sandbox(&self, container: &ContainerStatus) {
        self.machine.lose_sandbox(&container.pod);
    }
}
