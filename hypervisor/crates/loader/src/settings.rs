//! Contents of a guest's memory beside the kernel.

use crate::e820::low_ram_end;
use crate::error::{LoadError, SegmentFault};
use config::layout::LOW_RAM_LIMIT;
use x86defs::GuestPhysAddr;
use x86defs::addr::PAGE_SIZE;

/// Contents that are loaded beside the kernel.
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
    /// Address of the ACPI root pointer, from [`write_tables`](crate::write_tables).
    pub rsdp: GuestPhysAddr,
}

/// A module for a PVH or Multiboot kernel.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// Name of the module's file: a Multiboot kernel sees it before the command line.
    pub name: &'a str,
    /// Contents of the module.
    pub data: &'a [u8],
    /// Command line of the module, without a NUL.
    pub cmdline: &'a str,
}

impl<'a> LoadSettings<'_, 'a> {
    /// The modules, an initial ramdisk first.
    pub(crate) fn all_modules(&self) -> impl Iterator<Item = Module<'a>> {
        self.initrd.into_iter().chain(self.modules.iter().copied())
    }

    /// Error that says how much memory a kernel in `kernel` takes with all its files behind it, if
    /// it found no place because of `error`; `error` itself if more memory would be no help.
    pub(crate) fn explain(&self, error: LoadError, kernel: core::ops::Range<u64>) -> LoadError {
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
