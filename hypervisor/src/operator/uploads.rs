//! Memory for the files that programs upload.

use crate::mm;
use crate::mm::upload::FileMemory;
use alloc::format;
use alloc::sync::Arc;
use control::protocol::uploads::Storage;
use control::{ErrorCode, Refusal};

/// The memory that uploads lie in.
#[derive(Debug)]
pub(super) struct UploadMemory;

impl Storage for UploadMemory {
    type File = Arc<FileMemory>;

    fn allocate(&mut self, size: u64) -> Result<Self::File, Refusal> {
        FileMemory::new(size).map(Arc::new).ok_or_else(|| {
            let left = mm::frame_counts().spare() * 4096;
            let message =
                format!("no memory for a file of {size} bytes: {left} are free in all, in pieces");
            Refusal::new(ErrorCode::NoMemory, message)
        })
    }

    fn write(&mut self, file: &mut Self::File, offset: u64, bytes: &[u8]) -> Result<(), Refusal> {
        // A guest can be made of it only once it is whole.
        let written = Arc::get_mut(file).is_some_and(|file| file.write(offset, bytes));
        written
            .then_some(())
            .ok_or_else(|| Refusal::new(ErrorCode::Internal, "the file can't be written to"))
    }

    fn release(&mut self, file: Self::File) {
        drop(file);
    }
}
