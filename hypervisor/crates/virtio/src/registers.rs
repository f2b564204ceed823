//! The registers of the common configuration (virtio 1.2, "Common configuration structure layout"),
//! by themselves: what they hold, and what a write comes to.

use crate::feature;
use alloc::vec::Vec;
use bitflags::bitflags;
use devices::RestoreError;
use serde::{Deserialize, Serialize};
use virtqueue::Layout;
use x86defs::Width;
use x86defs::bits::{Low, high32, join};

/// The most entries that a queue of ours has.
pub const MAX_QUEUE_SIZE: u16 = 256;
/// No vector of MSI-X (`VIRTIO_MSI_NO_VECTOR`).
pub const NO_VECTOR: u16 = 0xffff;
/// Bytes of the structure.
pub const COMMON_SIZE: u64 = 0x40;

bitflags! {
    /// The device's status (virtio 1.2, "Device Status Field").
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Status: u8 {
        /// The driver has noticed the device.
        const ACKNOWLEDGE = 1;
        /// The driver knows how to drive it.
        const DRIVER = 2;
        /// The driver is set up.
        const DRIVER_OK = 4;
        /// The features are negotiated.
        const FEATURES_OK = 8;
        /// The device can't go on without a reset.
        const NEEDS_RESET = 0x40;
        /// The driver has given up.
        const FAILED = 0x80;
    }
}

/// Offsets of the registers.
mod at {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(super) const DEVICE_FEATURE: u64 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(super) const DRIVER_FEATURE: u64 = 0x0c;
    pub(super) const CONFIG_VECTOR: u64 = 0x10;
    pub(super) const NUM_QUEUES: u64 = 0x12;
    pub(super) const STATUS: u64 = 0x14;
    pub(super) const GENERATION: u64 = 0x15;
    pub(super) const QUEUE_SELECT: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_VECTOR: u64 = 0x1a;
    pub(super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub(super) const QUEUE_DESCRIPTORS: u64 = 0x20;
    pub(super) const QUEUE_AVAILABLE: u64 = 0x28;
    pub(super) const QUEUE_USED: u64 = 0x30;
}

/// The next thing that the owner of the registers has to do after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Nothing.
    Nothing,
    /// The driver wants the device reset: [`Registers::reset`] when nothing is in flight.
    Reset,
    /// The driver is set up: each queue may have work.
    Ready,
    /// The queue has been enabled; its place is known.
    Enabled(u16, Layout),
    /// The driver has enabled a queue that can't be.
    Broken,
}

/// The registers of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Queue {
    /// The most entries.
    most: u16,
    size: u16,
    vector: u16,
    enabled: bool,
    /// Descriptor table, available ring, used ring.
    places: [u64; 3],
}

impl Queue {
    const fn new(most: u16) -> Self {
        Self { most, size: most, vector: NO_VECTOR, enabled: false, places: [0; 3] }
    }

    /// The place that the driver has given it; `None` if a queue can't be so.
    fn layout(&self) -> Option<Layout> {
        let [descriptors, available, used] = self.places;
        (self.size <= self.most)
            .then(|| Layout::new(self.size, descriptors, available, used).ok())
            .flatten()
    }
}

/// The common configuration of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    offered: u64,
    /// Vectors of MSI-X that there are.
    vectors: u16,
    device_feature_select: u32,
    driver_feature_select: u32,
    /// Features that the driver has written.
    accepted: u64,
    config_vector: u16,
    status: Status,
    generation: u8,
    queue_select: u16,
    queues: Vec<Queue>,
}

/// The saved state of [`Registers`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistersState {
    selects: [u32; 3],
    accepted: u64,
    config_vector: u16,
    status: u8,
    generation: u8,
    queues: Vec<Queue>,
}

impl Registers {
    /// State from which others can go on.
    #[must_use]
    pub fn save(&self) -> RegistersState {
        RegistersState {
            selects: [
                self.device_feature_select,
                self.driver_feature_select,
                self.queue_select.into(),
            ],
            accepted: self.accepted,
            config_vector: self.config_vector,
            status: self.status.bits(),
            generation: self.generation,
            queues: self.queues.clone(),
        }
    }

    /// Goes on from `state`.
    ///
    /// # Errors
    /// It is another device's, or can't be: then nothing has changed.
    pub fn restore(&mut self, state: RegistersState) -> Result<(), RestoreError> {
        let status = Status::from_bits(state.status).ok_or(RestoreError("virtio: its status"))?;
        let [device_feature_select, driver_feature_select, queue_select] = state.selects;
        let negotiated = status.contains(Status::FEATURES_OK);
        let restored = Self {
            device_feature_select,
            driver_feature_select,
            queue_select: queue_select.low16(),
            accepted: state.accepted,
            config_vector: state.config_vector,
            status,
            generation: state.generation,
            queues: state.queues,
            ..*self
        };
        if negotiated && !restored.is_acceptable()
            || status.contains(Status::DRIVER_OK) && !negotiated
        {
            return Err(RestoreError("virtio: features that are not offered"));
        }
        let sizes = |r: &Self| r.queues.iter().map(|queue| queue.most).collect::<Vec<_>>();
        let vectors = restored.queues.iter().map(|queue| queue.vector);
        let mut vectors = vectors.chain([restored.config_vector]);
        if sizes(&restored) != sizes(self) || vectors.any(|v| self.existing(v) != v) {
            return Err(RestoreError("virtio: other queues or vectors"));
        }
        for queue in &restored.queues {
            if queue.enabled && queue.layout().is_none() {
                return Err(RestoreError("virtio: a queue that can't be"));
            }
        }
        *self = restored;
        Ok(())
    }

    /// The place of a queue that is enabled.
    #[must_use]
    pub fn layout(&self, queue: u16) -> Option<Layout> {
        self.queues.get(usize::from(queue)).filter(|queue| queue.enabled)?.layout()
    }

    /// Registers of a device that offers `offered`, has `vectors` vectors of MSI-X, and queues of
    /// these sizes at the most.
    #[must_use]
    pub fn new(offered: u64, vectors: u16, sizes: &[u16]) -> Self {
        Self {
            offered,
            vectors,
            device_feature_select: 0,
            driver_feature_select: 0,
            accepted: 0,
            config_vector: NO_VECTOR,
            status: Status::empty(),
            generation: 0,
            queue_select: 0,
            queues: sizes.iter().map(|most| Queue::new(*most)).collect(),
        }
    }

    /// The device's status.
    #[must_use]
    pub const fn status(&self) -> Status {
        self.status
    }

    /// Features that were negotiated; none before that.
    #[must_use]
    pub fn features(&self) -> u64 {
        if self.status.contains(Status::FEATURES_OK) { self.accepted } else { 0 }
    }

    /// Whether the driver is set up, and the device works for it.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.status.contains(Status::DRIVER_OK) && !self.status.contains(Status::NEEDS_RESET)
    }

    /// The vector of MSI-X for changes of the configuration.
    #[must_use]
    pub const fn config_vector(&self) -> u16 {
        self.config_vector
    }

    /// The vector of MSI-X of a queue.
    #[must_use]
    pub fn vector(&self, queue: u16) -> u16 {
        self.queues.get(usize::from(queue)).map_or(NO_VECTOR, |queue| queue.vector)
    }

    /// The device can't go on. `true`: the driver is to be told by a configuration interrupt.
    pub fn needs_reset(&mut self) -> bool {
        let first = !self.status.contains(Status::NEEDS_RESET);
        self.status |= Status::NEEDS_RESET;
        first && self.status.contains(Status::DRIVER_OK)
    }

    /// The configuration of the device's own kind has changed.
    pub fn config_changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// As after power-up.
    pub fn reset(&mut self) {
        for queue in &mut self.queues {
            *queue = Queue::new(queue.most);
        }
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.accepted = 0;
        self.config_vector = NO_VECTOR;
        self.status = Status::empty();
        self.queue_select = 0;
    }

    fn selected(&self) -> Option<&Queue> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// The 32 bits of `features` that a driver has selected.
    fn half(features: u64, select: u32) -> u32 {
        match select {
            0 => features.low32(),
            1 => high32(features),
            _ => 0,
        }
    }

    /// Reads. An access of any width gives the bytes of the registers that it reaches.
    #[must_use]
    pub fn read(&self, offset: u64, width: Width) -> u64 {
        (0..width.bytes() as u64)
            .rev()
            .fold(0, |value, n| value << 8 | u64::from(self.byte(offset.saturating_add(n))))
    }

    fn byte(&self, offset: u64) -> u8 {
        let queue = self.selected();
        let of = |value: fn(&Queue) -> u64| queue.map_or(0, value);
        let (start, value) = match offset {
            0x00..=0x03 => (at::DEVICE_FEATURE_SELECT, self.device_feature_select.into()),
            0x04..=0x07 => {
                (at::DEVICE_FEATURE, Self::half(self.offered, self.device_feature_select).into())
            }
            0x08..=0x0b => (at::DRIVER_FEATURE_SELECT, self.driver_feature_select.into()),
            0x0c..=0x0f => {
                (at::DRIVER_FEATURE, Self::half(self.accepted, self.driver_feature_select).into())
            }
            0x10..=0x11 => (at::CONFIG_VECTOR, self.config_vector.into()),
            0x12..=0x13 => (at::NUM_QUEUES, self.queues.len() as u64),
            0x14 => (at::STATUS, self.status.bits().into()),
            0x15 => (at::GENERATION, self.generation.into()),
            0x16..=0x17 => (at::QUEUE_SELECT, self.queue_select.into()),
            0x18..=0x19 => (at::QUEUE_SIZE, of(|queue| queue.size.into())),
            0x1a..=0x1b => (at::QUEUE_VECTOR, queue.map_or(NO_VECTOR, |queue| queue.vector).into()),
            0x1c..=0x1d => (at::QUEUE_ENABLE, of(|queue| queue.enabled.into())),
            0x1e..=0x1f => (at::QUEUE_NOTIFY_OFF, queue.map_or(0, |_| self.queue_select).into()),
            0x20..=0x27 => (at::QUEUE_DESCRIPTORS, of(|queue| queue.places[0])),
            0x28..=0x2f => (at::QUEUE_AVAILABLE, of(|queue| queue.places[1])),
            0x30..=0x37 => (at::QUEUE_USED, of(|queue| queue.places[2])),
            _ => (offset, 0),
        };
        let shift = offset.saturating_sub(start).saturating_mul(8);
        (value >> shift.min(63)).low8()
    }

    /// Writes. A write of another width than the register's is lost, as is one to a register
    /// that can't be written now; registers of 64 bits may be written in halves.
    pub fn write(&mut self, offset: u64, width: Width, value: u64) -> Written {
        match (offset, width) {
            (at::DEVICE_FEATURE_SELECT, Width::B4) => self.device_feature_select = value.low32(),
            (at::DRIVER_FEATURE_SELECT, Width::B4) => self.driver_feature_select = value.low32(),
            (at::DRIVER_FEATURE, Width::B4) => self.accept(value.low32()),
            (at::CONFIG_VECTOR, Width::B2) => {
                self.config_vector = self.existing(value.low16());
            }
            (at::STATUS, Width::B1) => return self.write_status(value.low8()),
            (at::QUEUE_SELECT, Width::B2) => self.queue_select = value.low16(),
            (at::QUEUE_VECTOR, Width::B2) => {
                let vector = self.existing(value.low16());
                if let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) {
                    queue.vector = vector;
                }
            }
            (at::QUEUE_ENABLE, Width::B2) if value == 1 => return self.enable(),
            (at::QUEUE_SIZE, Width::B2) => {
                if let Some(queue) = self.changeable() {
                    queue.size = value.low16();
                }
            }
            (at::QUEUE_DESCRIPTORS..0x38, Width::B4 | Width::B8) => {
                let place = usize::try_from((offset - at::QUEUE_DESCRIPTORS) / 8);
                let half = offset & 7;
                if let Some(queue) = self.changeable()
                    && let Ok(place) = place
                    && let Some(place) = queue.places.get_mut(place)
                {
                    *place = match (half, width) {
                        (0, Width::B8) => value,
                        (0, _) => join(high32(*place), value.low32()),
                        (4, Width::B4) => join(value.low32(), place.low32()),
                        _ => *place,
                    };
                }
            }
            _ => {}
        }
        Written::Nothing
    }

    /// The vector, if there is such a one.
    const fn existing(&self, vector: u16) -> u16 {
        if vector < self.vectors { vector } else { NO_VECTOR }
    }

    /// The selected queue, while the driver may change it.
    fn changeable(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(usize::from(self.queue_select)).filter(|queue| !queue.enabled)
    }

    /// The driver writes a half of the features that it accepts; the last write counts.
    fn accept(&mut self, half: u32) {
        if self.status.contains(Status::FEATURES_OK) {
            return;
        }
        self.accepted = match self.driver_feature_select {
            0 => join(high32(self.accepted), half),
            1 => join(half, self.accepted.low32()),
            _ => self.accepted,
        };
    }

    fn write_status(&mut self, value: u8) -> Written {
        if value == 0 {
            return Written::Reset;
        }
        let before = self.status;
        // Bits are never cleared but by a reset.
        let mut status = before | (Status::from_bits_truncate(value) - Status::NEEDS_RESET);
        let begins = |bit| status.contains(bit) && !before.contains(bit);
        if begins(Status::FEATURES_OK) && !self.is_acceptable() {
            // The driver looks whether the bit is there.
            status -= Status::FEATURES_OK;
        }
        let ready = status.contains(Status::DRIVER_OK)
            && !before.contains(Status::DRIVER_OK)
            && status.contains(Status::FEATURES_OK);
        if !status.contains(Status::FEATURES_OK) {
            status -= Status::DRIVER_OK;
        }
        self.status = status;
        if ready { Written::Ready } else { Written::Nothing }
    }

    /// Whether the device can work with the features that the driver has accepted.
    const fn is_acceptable(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & feature::VERSION_1 != 0
    }

    fn enable(&mut self) -> Written {
        let number = self.queue_select;
        let Some(queue) = self.changeable() else { return Written::Nothing };
        match queue.layout() {
            Some(layout) => {
                queue.enabled = true;
                Written::Enabled(number, layout)
            }
            None => Written::Broken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OFFERED: u64 = feature::TRANSPORT | 1 << 9;

    fn registers() -> Registers {
        Registers::new(OFFERED, 3, &[256, 64])
    }

    fn accept(r: &mut Registers, features: u64) {
        for (select, half) in [(0, features.low32()), (1, high32(features))] {
            r.write(at::DRIVER_FEATURE_SELECT, Width::B4, select);
            r.write(at::DRIVER_FEATURE, Width::B4, half.into());
        }
    }

    fn status(r: &Registers) -> u64 {
        r.read(at::STATUS, Width::B1)
    }

    /// The order of Linux (drivers/virtio/virtio_pci_modern.c, virtio.c).
    #[test]
    fn a_driver_comes_up() {
        let mut r = registers();
        assert_eq!(r.write(at::STATUS, Width::B1, 0), Written::Reset);
        r.reset();
        assert_eq!(status(&r), 0);
        r.write(at::STATUS, Width::B1, 1);
        r.write(at::STATUS, Width::B1, 3);
        let mut offered = 0;
        for select in [1, 0] {
            r.write(at::DEVICE_FEATURE_SELECT, Width::B4, select);
            offered = offered << 32 | r.read(at::DEVICE_FEATURE, Width::B4);
        }
        assert_eq!(offered, OFFERED);
        r.write(at::DEVICE_FEATURE_SELECT, Width::B4, 2);
        assert_eq!(r.read(at::DEVICE_FEATURE, Width::B4), 0);
        // The last write counts.
        accept(&mut r, OFFERED);
        accept(&mut r, OFFERED & !(1 << 9));
        assert_eq!(r.features(), 0);
        r.write(at::STATUS, Width::B1, 0xb);
        assert_eq!((status(&r), r.features()), (0xb, OFFERED & !(1 << 9)));
        accept(&mut r, 0);
        assert_eq!(r.features(), OFFERED & !(1 << 9), "it is too late");
        r.write(at::CONFIG_VECTOR, Width::B2, 0);
        assert_eq!(r.read(at::CONFIG_VECTOR, Width::B2), 0);
        assert_eq!(r.read(at::NUM_QUEUES, Width::B2), 2);
        r.write(at::QUEUE_SELECT, Width::B2, 1);
        assert_eq!(r.read(at::QUEUE_SIZE, Width::B2), 64);
        assert_eq!(r.read(at::QUEUE_ENABLE, Width::B2), 0);
        assert_eq!(r.read(at::QUEUE_NOTIFY_OFF, Width::B2), 1);
        r.write(at::QUEUE_SIZE, Width::B2, 16);
        for (offset, half) in [(0x20, 0x1000), (0x24, 1), (0x28, 0x2000), (0x30, 0x3000)] {
            r.write(offset, Width::B4, half);
        }
        r.write(0x30, Width::B8, 0x4000);
        for (vector, kept) in [(2, 2), (3, 0xffff), (0xffff, 0xffff), (1, 1)] {
            r.write(at::QUEUE_VECTOR, Width::B2, vector);
            assert_eq!(r.read(at::QUEUE_VECTOR, Width::B2), kept);
        }
        let layout = Layout::new(16, 0x1_0000_1000, 0x2000, 0x4000).unwrap();
        assert_eq!(r.write(at::QUEUE_ENABLE, Width::B2, 1), Written::Enabled(1, layout));
        assert_eq!(r.write(at::QUEUE_ENABLE, Width::B2, 1), Written::Nothing, "it is already");
        r.write(at::QUEUE_SIZE, Width::B2, 8);
        r.write(0x20, Width::B4, 0);
        assert_eq!(r.read(0x20, Width::B8), 0x1_0000_1000);
        assert_eq!(r.read(at::QUEUE_SIZE, Width::B2), 16);
        assert!(!r.is_live());
        assert_eq!(r.write(at::STATUS, Width::B1, 0xf), Written::Ready);
        assert_eq!(r.write(at::STATUS, Width::B1, 0xf), Written::Nothing);
        assert!(r.is_live());
        assert!(r.needs_reset() && !r.needs_reset());
        assert_eq!((status(&r), r.is_live()), (0x4f, false));
        r.reset();
        assert_eq!(r, registers());
    }

    #[test]
    fn features_that_can_not_be() {
        for features in [OFFERED | 1 << 5, 0, OFFERED & !feature::VERSION_1, 1 << 63 | OFFERED] {
            let mut r = registers();
            accept(&mut r, features);
            r.write(at::STATUS, Width::B1, 3);
            r.write(at::STATUS, Width::B1, 0xb);
            assert_eq!((status(&r), r.features()), (3, 0), "{features:x}");
            assert_eq!(r.write(at::STATUS, Width::B1, 0xf), Written::Nothing);
            assert!(!r.is_live(), "{features:x}");
        }
        // The driver can't clear what only a reset clears.
        let mut r = registers();
        r.write(at::STATUS, Width::B1, 0x83);
        r.write(at::STATUS, Width::B1, 0x41);
        assert_eq!(status(&r), 0x83);
    }

    #[test]
    fn queues_that_can_not_be() {
        for (size, places) in [
            (0, [0; 3]),
            (3, [0; 3]),
            (128, [0; 3]),
            (512, [0; 3]),
            (16, [1, 0, 0]),
            (16, [0, 0, 2]),
        ] {
            let mut r = registers();
            r.write(at::QUEUE_SELECT, Width::B2, 1);
            r.write(at::QUEUE_SIZE, Width::B2, size);
            for (offset, place) in [0x20, 0x28, 0x30].into_iter().zip(places) {
                r.write(offset, Width::B8, place);
            }
            assert_eq!(r.write(at::QUEUE_ENABLE, Width::B2, 1), Written::Broken, "{size}");
            assert_eq!(r.read(at::QUEUE_ENABLE, Width::B2), 0);
        }
        // A queue that there is not.
        let mut r = registers();
        r.write(at::QUEUE_SELECT, Width::B2, 2);
        assert_eq!(r.read(at::QUEUE_SIZE, Width::B2), 0);
        assert_eq!(r.write(at::QUEUE_ENABLE, Width::B2, 1), Written::Nothing);
        assert_eq!(r.read(at::QUEUE_VECTOR, Width::B2), 0xffff);
    }

    fn width() -> impl Strategy<Value = Width> {
        prop::sample::select(&[Width::B1, Width::B2, Width::B4, Width::B8])
    }

    proptest! {
        /// Reads of any width are the bytes of the registers; writes of any kind leave what may not
        /// change.
        #[test]
        fn any_access(
            accesses in prop::collection::vec(
                (any::<bool>(), 0u64..0x48, width(), prop_oneof![any::<u64>(), 0u64..4]), 1..100,
            ),
        ) {
            let mut r = registers();
            for (write, offset, width, value) in accesses {
                if write {
                    match r.write(offset, width, width.truncate(value)) {
                        Written::Reset => r.reset(),
                        Written::Enabled(queue, layout) => {
                            prop_assert!(queue < 2 && layout.size() <= 256);
                        }
                        Written::Ready => prop_assert!(r.features() & feature::VERSION_1 != 0),
                        Written::Nothing | Written::Broken => {}
                    }
                }
                let whole = r.read(offset, width);
                prop_assert_eq!(width.truncate(whole), whole);
                for n in 0..width.bytes() as u64 {
                    prop_assert_eq!(r.read(offset + n, Width::B1), whole >> (8 * n) & 0xff);
                }
                prop_assert_eq!(r.features() & !OFFERED, 0);
                prop_assert_eq!(r.read(at::NUM_QUEUES, Width::B2), 2);
            }
        }
    }
}
