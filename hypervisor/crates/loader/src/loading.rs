//! Loads a kernel: finds the kind of the image, and places for everything.

use crate::bytes::Bytes;
use crate::error::LoadError;
use crate::linux::checksum::Checksum;
use crate::place::Plan;
use crate::settings::LoadSettings;
use crate::{elf, foreign, linux, multiboot, pvh};
use memory::{GuestMemory, MemoryError};
use x86defs::CpuState;

/// A kernel on its way into memory, and the state in which its first vCPU starts then.
pub struct Loading<'a> {
    checksum: Option<Checksum<'a>>,
    plan: Plan<'a>,
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
