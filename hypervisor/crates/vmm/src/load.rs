//! Puts a guest's kernel, its initial ramdisk or modules and its command line
//! into the guest's memory, and says how its first vCPU starts.
//!
//! Which protocol an image speaks is seen from the image: Linux's boot
//! protocols of 64 and 32 bits (`linux`), PVH (`pvh`) or Multiboot 1 (`multiboot`), the last two
//! for ELF images; a Multiboot header wins over a PVH note, as in other loaders. Images that
//! are made for other machines (firmware, GRUB for Xen) are known by name (`foreign`).
//! Everything is checked before anything is written, and a refusal ([`LoadError`]) names the
//! field, the segment or the numbers that don't fit.
//!
//! A kernel may have gigabytes: what looks at every byte of it is done in pieces
//! ([`Loading::check`], [`Loading::write`]).
//!
//! The loaders see images as untrusted bytes: every read is bounded and every
//! sum checked. Fuzz target: `loaders`.

mod bytes;
mod elf;
mod entry;
mod error;
mod foreign;
mod linux;
mod multiboot;
mod place;
mod pvh;
mod tables;
#[cfg(test)]
mod tests;

pub use error::{Format, LoadError};
pub use tables::{TableAddresses, TablesConfig, TablesError, write_tables};

use crate::e820::low_ram_end;
use bytes::Bytes;
use config::layout::LOW_RAM_LIMIT;
use error::SegmentFault;
use linux::checksum::Checksum;
use memory::{GuestMemory, MemoryError};
use x86defs::addr::PAGE_SIZE;
use x86defs::{CpuState, GuestPhysAddr};

/// What is loaded beside the kernel.
#[derive(Clone, Copy, Debug)]
pub struct LoadSettings<'m, 'a> {
    /// The guest's memory in bytes, at least 1 MiB.
    pub memory: u64,
    /// The name of the kernel's file: a Multiboot kernel's command line begins with it.
    pub kernel: &'a str,
    /// The kernel's command line, without a NUL.
    pub cmdline: &'a str,
    /// The initial ramdisk. For PVH and Multiboot kernels it is the first module, whose
    /// command line is empty.
    pub initrd: Option<Module<'a>>,
    /// Modules for PVH and Multiboot kernels.
    pub modules: &'m [Module<'a>],
    /// Where [`write_tables`] put the ACPI root pointer.
    pub rsdp: GuestPhysAddr,
}

/// A module for a PVH or Multiboot kernel.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// The name of its file: what a Multiboot kernel sees before its command line.
    pub name: &'a str,
    /// Its contents.
    pub data: &'a [u8],
    /// Its command line, without a NUL.
    pub cmdline: &'a str,
}

impl<'a> LoadSettings<'_, 'a> {
    /// The modules, an initial ramdisk first.
    fn all_modules(&self) -> impl Iterator<Item = Module<'a>> {
        self.initrd.into_iter().chain(self.modules.iter().copied())
    }

    /// Says of a kernel in `kernel` that found no place, because of `error`, how much memory it
    /// takes with all its files behind it; `error` itself where more memory would be no help.
    fn explain(&self, error: LoadError, kernel: core::ops::Range<u64>) -> LoadError {
        let is_room = matches!(
            error,
            LoadError::NoRoom { .. } | LoadError::Segment { fault: SegmentFault::NotRam, .. }
        );
        let pages = |bytes: u64| bytes.checked_next_multiple_of(PAGE_SIZE).unwrap_or(u64::MAX);
        let files = self.all_modules().map(|file| pages(file.data.len() as u64));
        let end = files.fold(pages(kernel.end), u64::saturating_add);
        let ram_end = low_ram_end(self.memory);
        if is_room && end > ram_end && end <= LOW_RAM_LIMIT {
            return LoadError::TooLittleMemory { start: kernel.start, end, ram_end };
        }
        error
    }
}

/// What has to be written for a kernel, and how its first vCPU starts then.
pub struct Loading<'a> {
    checksum: Option<Checksum<'a>>,
    plan: place::Plan<'a>,
    state: CpuState,
}

impl core::fmt::Debug for Loading<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Loading").field("state", &self.state).finish_non_exhaustive()
    }
}

impl<'a> Loading<'a> {
    /// Reads the headers of the kernel `image` and finds places for everything. Nothing
    /// is written yet. It takes little time, however large the image is.
    ///
    /// # Errors
    /// [`LoadError`] names what is wrong with the image, or what does not fit.
    pub fn new(image: &'a [u8], settings: &LoadSettings<'_, 'a>) -> Result<Self, LoadError> {
        let bytes = Bytes(image);
        let mut checksum = None;
        let (plan, state) = if elf::is_elf(bytes) {
            let elf = elf::Elf::parse(bytes)?;
            if let Some(foreign) = foreign::elf(bytes, &elf)? {
                return Err(foreign);
            }
            match multiboot::find_header(bytes)? {
                Some(header) => multiboot::plan(bytes, Some(&elf), &header, settings),
                None => match pvh::find_entry(&elf)? {
                    Some(entry) => pvh::plan(&elf, entry, settings),
                    None => return Err(LoadError::ElfWithoutProtocol),
                },
            }
            .map_err(|error| settings.explain(error, elf.range()))?
        } else if linux::is_linux(bytes) {
            let (plan, state, sum) = linux::plan(bytes, settings)?;
            checksum = sum;
            (plan, state)
        } else if let Some(header) = multiboot::find_header(bytes)? {
            multiboot::plan(bytes, None, &header, settings)?
        } else {
            return Err(foreign::flat(bytes).unwrap_or_else(|| LoadError::unrecognised(image)));
        };
        Ok(Self { checksum, plan, state })
    }

    /// Looks at at most `bytes` more of an image that carries a checksum; whether
    /// something is left. Comes before the first [`write`](Self::write).
    ///
    /// # Errors
    /// [`LoadError::Checksum`] where it does not hold.
    pub fn check(&mut self, bytes: usize) -> Result<bool, LoadError> {
        let Some(checksum) = &mut self.checksum else { return Ok(false) };
        let more = checksum.step(bytes)?;
        if !more {
            self.checksum = None;
        }
        Ok(more)
    }

    /// Writes at most `bytes` more; whether something is left.
    ///
    /// # Errors
    /// [`MemoryError`] where the guest's memory could not be had.
    pub fn write(&mut self, memory: &impl GuestMemory, bytes: usize) -> Result<bool, MemoryError> {
        self.plan.write(memory, bytes)
    }

    /// How the first vCPU starts, once everything is written.
    #[must_use]
    pub const fn state(&self) -> &CpuState {
        &self.state
    }
}

/// Loads the kernel `image` into a guest's memory and returns the state in
/// which its first vCPU starts.
///
/// # Errors
/// [`LoadError`] names what is wrong with the image, or what does not fit.
/// Nothing was written then, except after [`LoadError::Memory`].
pub fn load(
    image: &[u8],
    memory: &impl GuestMemory,
    settings: &LoadSettings<'_, '_>,
) -> Result<CpuState, LoadError> {
    let mut loading = Loading::new(image, settings)?;
    while loading.check(usize::MAX)? {}
    while loading.write(memory, usize::MAX)? {}
    Ok(loading.state)
}
