//! Types and functions that all parts of a board need to be saved and restored.

use devices::{Device, RestoreError};
use state::{Saved, Sections, StateError};

/// Whether something of a device is still in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Quiet {
    /// Nothing is: it can be saved.
    Now,
    /// A medium still works for it: it is to be asked again.
    NotYet,
}

/// The error of a device's state that was refused.
pub(crate) fn refused<T: Saved>(instance: u32) -> impl FnOnce(RestoreError) -> StateError {
    move |RestoreError(why)| StateError::refused(T::NAME, instance, why)
}

/// Restores a device of which the board has one.
pub(crate) fn take<D: Device>(
    sections: &mut Sections<'_>,
    device: &mut D,
) -> Result<(), StateError> {
    let state = sections.take::<D::State>(0)?;
    device.restore(state).map_err(refused::<D::State>(0))
}
