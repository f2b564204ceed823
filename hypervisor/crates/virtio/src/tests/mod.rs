//! A device on a board, driven as a driver does.

extern crate std;

mod device;

use crate::{Broken, Kind, Place, Request, Served, VirtioDevice};
use alloc::boxed::Box;
use alloc::sync::Arc;
use chipset::fabric::{Fabric, Kick};
use chipset::pci::BoardDevice;
use chipset::{Board, ConsoleSink};
use config::GuestSettings;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use devices::lapic::{ApicIdentity, ApicMode};
use devices::pci::{DevFn, command, header};
use memory::{GuestMemory, MemoryError};
use service::Wake;
use std::sync::Mutex;
use std::vec::Vec;
use x86defs::bits::Low;
use x86defs::time::Nanos;
use x86defs::{GuestPhysAddr, Width};

pub(super) const NOW: Nanos = Nanos(0);
const SLOT: u8 = 5;
/// The place of the registers.
pub(super) const MEMORY: u64 = 0xd000_0000;
/// The place of the MSI-X table.
pub(super) const TABLE: u64 = 0xd000_1000;
/// The place of the doorbells.
pub(super) const PORTS: u16 = 0xc000;
/// Bytes of RAM.
const RAM: usize = 0x2_0000;

/// RAM of the guest, which several threads may use.
#[derive(Clone, Debug)]
pub(crate) struct Ram(pub(crate) Arc<Mutex<Vec<u8>>>);

impl Ram {
    fn range(gpa: GuestPhysAddr, len: usize) -> Result<core::ops::Range<usize>, MemoryError> {
        let start = usize::try_from(gpa.as_u64()).unwrap_or(usize::MAX);
        let end = start.checked_add(len).filter(|end| *end <= RAM);
        end.map(|end| start..end).ok_or(MemoryError::NotRam(gpa))
    }
}

impl GuestMemory for Ram {
    fn read(&self, gpa: GuestPhysAddr, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let range = Self::range(gpa, buffer.len())?;
        buffer.copy_from_slice(&self.0.lock().unwrap()[range]);
        Ok(())
    }

    fn write(&self, gpa: GuestPhysAddr, data: &[u8]) -> Result<(), MemoryError> {
        let range = Self::range(gpa, data.len())?;
        self.0.lock().unwrap()[range].copy_from_slice(data);
        Ok(())
    }

    fn compare_exchange(
        &self,
        gpa: GuestPhysAddr,
        _: Width,
        _: u64,
        _: u64,
    ) -> Result<u64, MemoryError> {
        Err(MemoryError::NotRam(gpa))
    }
}

/// A device with two queues that writes back what it reads, in capitals.
#[derive(Debug, Default)]
pub(super) struct Echo {
    /// It can't serve anything now.
    pub(super) later: AtomicBool,
    pub(super) resets: AtomicUsize,
    pub(super) value: AtomicU32,
}

pub(super) const SHOUT: u64 = 1 << 3;

impl<M: GuestMemory> Kind<M> for Echo {
    fn number(&self) -> u16 {
        2
    }

    fn class(&self) -> u32 {
        0x01_80_00
    }

    fn features(&self) -> u64 {
        SHOUT
    }

    fn queues(&self) -> &[u16] {
        &[16, 4]
    }

    fn config(&self, offset: u64, _: u64) -> u8 {
        let bytes = self.value.load(Ordering::Relaxed).to_le_bytes();
        usize::try_from(offset).ok().and_then(|at| bytes.get(at).copied()).unwrap_or(0)
    }

    fn write_config(&self, offset: u64, width: Width, value: u64, _: u64) {
        if (offset, width) == (0, Width::B4) {
            self.value.store(value.low32(), Ordering::Relaxed);
        }
    }

    fn serve(&self, _: u16, request: &Request<'_, M>, features: u64) -> Result<Served, Broken> {
        if self.later.load(Ordering::Relaxed) {
            return Ok(Served::Later);
        }
        let mut text = [0; 64];
        let len = usize::try_from(request.readable()).unwrap().min(64);
        let text = &mut text[..len];
        let broken = |_| Broken::Request("an echo of nothing");
        request.read(0, text).map_err(broken)?;
        if features & SHOUT != 0 {
            text.make_ascii_uppercase();
        }
        request.write(0, text).map_err(broken)?;
        Ok(Served::Done(u32::try_from(len).unwrap()))
    }

    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts how often the service was woken.
#[derive(Debug, Default)]
pub(super) struct Woken(pub(super) AtomicUsize);

impl Wake for Woken {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct NoConsole;

impl ConsoleSink for NoConsole {
    fn room(&self) -> usize {
        0
    }

    fn put(&self, _: &[u8]) {}
}

pub(super) struct World {
    pub(super) ram: Ram,
    pub(super) woken: Arc<Woken>,
    pub(super) device: Arc<VirtioDevice<Echo, Ram>>,
    pub(super) fabric: Arc<Fabric>,
    pub(super) board: Board,
}

impl World {
    pub(super) fn new() -> Self {
        let fabric = Arc::new(Fabric::new(1, Kick(Box::new(|_| ()))));
        let identity =
            ApicIdentity::new().with_id(0).with_mode(ApicMode::XApic).with_software_enabled(true);
        fabric.routes().publish(0, identity);
        let at = DevFn::new(SLOT, 0).unwrap();
        let ram = Ram(Arc::new(Mutex::new(std::vec![0; RAM])));
        let woken = Arc::new(Woken::default());
        let waker: service::Waker = Arc::<Woken>::clone(&woken);
        let place = Place { at, fabric: Arc::clone(&fabric), waker, ports: true };
        let device = Arc::new(VirtioDevice::new(Echo::default(), ram.clone(), place).unwrap());
        let any: Arc<dyn BoardDevice> = Arc::<VirtioDevice<Echo, Ram>>::clone(&device);
        let settings = GuestSettings::new("guest", 1 << 20, "kernel");
        let devices = [(at, any)];
        let board = Board::new(0, &settings, Arc::clone(&fabric), Arc::new(NoConsole), &devices);
        Self { ram, woken, device, fabric, board }
    }

    fn select(&self, offset: u8) {
        let address = 1 << 31 | u32::from(SLOT) << 11 | u32::from(offset & !3);
        let _ = self.board.port_write(0xcf8, Width::B4, address, NOW);
    }

    pub(super) fn config(&self, offset: u8, width: Width) -> u32 {
        self.select(offset);
        self.board.port_read(0xcfc + u16::from(offset & 3), width, NOW)
    }

    pub(super) fn set_config(&self, offset: u8, width: Width, value: u32) {
        self.select(offset);
        let _ = self.board.port_write(0xcfc + u16::from(offset & 3), width, value, NOW);
    }

    pub(super) fn read(&self, offset: u64, width: Width) -> u64 {
        self.board.mmio_read(GuestPhysAddr::new(MEMORY + offset), width, || NOW)
    }

    pub(super) fn write(&self, offset: u64, width: Width, value: u64) {
        self.board.mmio_write(GuestPhysAddr::new(MEMORY + offset), width, value, || NOW);
    }

    /// The guest places the BARs.
    pub(super) fn place(&self) {
        for (bar, place) in [(0, u32::from(PORTS)), (1, MEMORY.low32()), (2, TABLE.low32())] {
            self.set_config(header::BAR0 + 4 * bar, Width::B4, place);
        }
        let all = command::IO_SPACE | command::MEMORY_SPACE | command::BUS_MASTER;
        self.set_config(header::COMMAND, Width::B2, all.into());
    }

    /// Offsets of the capabilities with this identity, in order.
    pub(super) fn capabilities(&self, id: u8) -> Vec<u8> {
        let mut all = Vec::new();
        let mut at = self.config(header::CAPABILITIES, Width::B1).low8();
        while at != 0 {
            if self.config(at, Width::B1).low8() == id {
                all.push(at);
            }
            at = self.config(at + 1, Width::B1).low8();
        }
        all
    }

    /// Vectors that were sent since this was called last.
    pub(super) fn vectors(&self) -> Vec<u8> {
        let mailbox = &self.fabric.mailboxes()[0];
        let _ = mailbox.take_requests();
        let (words, _) = mailbox.take();
        (0..=u8::MAX).filter(|v| words[usize::from(v >> 6)] >> (v & 63) & 1 != 0).collect()
    }
}
