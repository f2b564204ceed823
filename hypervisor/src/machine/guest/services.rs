//! The services of a guest, which run on its account: the zeroing of memory ahead, and one for each
//! of its devices that works, when the device is rung.

use crate::cpu::asm;
use crate::machine::world::World;
use crate::mm::guest::GuestSpace;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use chipset::fabric::Fabric;
use chipset::pci::Placed;
use chipset::test_device::{LAID_BYTES, Laid, Overlay, TestDevice};
use config::GuestSettings;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use devices::pci::DevFn;
use memory::slots::{Content, Rights};
use sched::{EntityId, Reason};
use service::{Service, Stop, Wake, Waker};
use spin::Once;
use x86defs::GuestPhysAddr;

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

/// A service of a guest, and its name in the scheduler.
pub(crate) struct GuestService {
    bell: Arc<Bell>,
    service: Arc<dyn Service>,
}

impl GuestService {
    fn new(bell: Arc<Bell>, service: Arc<dyn Service>) -> Self {
        Self { bell, service }
    }

    /// The scheduler knows it by this name.
    pub(super) fn set_entity(&self, entity: EntityId) {
        self.bell.entity.call_once(|| entity);
    }

    /// The scheduler's name of it.
    pub(crate) fn entity(&self) -> Option<EntityId> {
        self.bell.entity.get().copied()
    }

    /// The part that the scheduler runs.
    pub(crate) fn service(&self) -> Arc<dyn Service> {
        Arc::clone(&self.service)
    }
}

/// All services of a guest.
pub(crate) struct Services {
    zeroing: GuestService,
    /// Ticks of it.
    zeroed_for: Arc<AtomicU64>,
    devices: Vec<GuestService>,
}

impl Services {
    /// Each of them.
    pub(crate) fn each(&self) -> impl Iterator<Item = &GuestService> {
        core::iter::once(&self.zeroing).chain(&self.devices)
    }

    /// Memory that was zeroed ahead has been used: more is to be.
    pub(crate) fn zero_ahead(&self) {
        self.zeroing.bell.wake();
    }

    /// Ticks for which memory was zeroed ahead.
    pub(crate) fn zeroed_for(&self) -> u64 {
        self.zeroed_for.load(Ordering::Relaxed)
    }
}

/// Keeps the guest's stock of zeroed memory full.
struct Zeroing {
    name: String,
    space: Arc<GuestSpace>,
    ticks: Arc<AtomicU64>,
}

impl Service for Zeroing {
    fn name(&self) -> &str {
        &self.name
    }

    fn step(&self, until: u64) -> Stop {
        let from = asm::rdtsc();
        let stop = loop {
            // A vCPU may have been at the memory, so that nothing could be done. Where there is no
            // block to be zeroed, the next touch asks again.
            if !self.space.prepare() && !self.space.has_begun() {
                break Stop::Blocked;
            }
            if asm::rdtsc() >= until {
                break Stop::Ready;
            }
        };
        self.ticks.fetch_add(asm::rdtsc().saturating_sub(from), Ordering::Relaxed);
        stop
    }

    fn rest(&self) -> Option<u64> {
        None
    }
}

/// The guest's memory, as a [`TestDevice`] changes it.
#[derive(Debug)]
struct Layers {
    space: Arc<GuestSpace>,
    /// The generation of the last change.
    changed: AtomicU64,
}

impl Overlay for Layers {
    fn lay(&self, start: u64, what: Laid) -> bool {
        let start = GuestPhysAddr::new(start);
        let memory = |rights| Content::Memory { offset: self.space.spare(), rights };
        let content = match what {
            Laid::Nothing => None,
            Laid::Rom => Some(memory(Rights::Rom)),
            Laid::Devices => Some(Content::Devices),
            Laid::RomAsRam => Some(memory(Rights::Ram)),
        };
        let changed = start
            .checked_add(LAID_BYTES)
            .and_then(|end| self.space.lay_over(start..end, content).ok());
        changed.map(|changed| self.changed.store(changed, Ordering::Relaxed)).is_some()
    }

    fn is_settled(&self) -> bool {
        self.space.is_settled(self.changed.load(Ordering::Relaxed))
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

/// The devices of a guest with `settings` and the memory `space` that stand on its PCI bus, and all
/// services of the guest.
pub(super) fn make(
    settings: &GuestSettings,
    space: &Arc<GuestSpace>,
    fabric: &Arc<Fabric>,
    world: &'static World,
) -> (Vec<Placed>, Services) {
    let bell = || Arc::new(Bell { entity: Once::new(), world });
    let ticks = Arc::new(AtomicU64::new(0));
    let zeroing = Zeroing {
        name: format!("{}/zeroing", settings.name),
        space: Arc::clone(space),
        ticks: Arc::clone(&ticks),
    };
    let (mut placed, mut devices): (Vec<Placed>, Vec<GuestService>) = (Vec::new(), Vec::new());
    if settings.debug_exit {
        let bell = bell();
        let waker: Waker = Arc::<Bell>::clone(&bell);
        // The layout of its registers is fixed, and fits.
        let layers = Layers { space: Arc::clone(space), changed: AtomicU64::new(0) };
        let overlay = Arc::new(layers);
        if let Ok(device) = TestDevice::new(TEST_DEVICE, Arc::clone(fabric), waker, overlay) {
            placed.push((TEST_DEVICE, Arc::<TestDevice>::clone(&device)));
            let name = format!("{}/test device", settings.name);
            devices.push(GuestService::new(bell, Arc::new(TestService { name, device })));
        }
    }
    let zeroing = GuestService::new(bell(), Arc::new(zeroing));
    (placed, Services { zeroing, zeroed_for: ticks, devices })
}
