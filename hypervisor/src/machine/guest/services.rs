//! The services of a guest's devices: each runs on the guest's account, when its device is rung.

use crate::machine::world::World;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use chipset::fabric::Fabric;
use chipset::pci::Placed;
use chipset::test_device::TestDevice;
use config::GuestSettings;
use core::fmt;
use devices::pci::DevFn;
use sched::{EntityId, Reason};
use service::{Service, Stop, Wake, Waker};
use spin::Once;

/// Place of the [`TestDevice`] on the PCI bus.
const TEST_DEVICE: DevFn = match DevFn::new(3, 0) {
    Some(place) => place,
    None => panic!("there is such a place"),
};

/// Wakes a service, once the scheduler knows it.
struct Bell {
    entity: Once<EntityId>,
    world: &'static World,
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bell").field(&self.entity).finish()
    }
}

impl Wake for Bell {
    fn wake(&self) {
        if let Some(entity) = self.entity.get() {
            self.world.wake(*entity, Reason::Other);
        }
    }
}

/// The service of a device, and its name in the scheduler.
pub(crate) struct DeviceService {
    bell: Arc<Bell>,
    service: Arc<dyn Service>,
}

impl DeviceService {
    /// The scheduler knows it by this name.
    pub(super) fn set_entity(&self, entity: EntityId) {
        self.bell.entity.call_once(|| entity);
    }

    /// The scheduler's name of it.
    pub(crate) fn entity(&self) -> Option<EntityId> {
        self.bell.entity.get().copied()
    }

    /// What the scheduler runs.
    pub(crate) fn service(&self) -> Arc<dyn Service> {
        Arc::clone(&self.service)
    }
}

/// The work of a [`TestDevice`].
struct TestService {
    name: String,
    device: Arc<TestDevice>,
}

impl Service for TestService {
    fn name(&self) -> &str {
        &self.name
    }

    fn step(&self, _until: u64) -> Stop {
        self.device.turn();
        Stop::Blocked
    }

    fn rest(&self) -> Option<u64> {
        None
    }
}

/// The devices of a guest with `settings` that stand on its PCI bus, and their services.
pub(super) fn devices(
    settings: &GuestSettings,
    fabric: &Arc<Fabric>,
    world: &'static World,
) -> (Vec<Placed>, Vec<DeviceService>) {
    let (mut placed, mut services): (Vec<Placed>, Vec<DeviceService>) = (Vec::new(), Vec::new());
    if settings.debug_exit {
        let bell = Arc::new(Bell { entity: Once::new(), world });
        let waker: Waker = Arc::<Bell>::clone(&bell);
        // The layout of its registers is fixed, and fits.
        if let Ok(device) = TestDevice::new(TEST_DEVICE, Arc::clone(fabric), |_| waker) {
            placed.push((TEST_DEVICE, Arc::<TestDevice>::clone(&device)));
            let name = format!("{}/test device", settings.name);
            services.push(DeviceService { bell, service: Arc::new(TestService { name, device }) });
        }
    }
    (placed, services)
}
