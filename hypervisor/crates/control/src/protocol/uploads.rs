//! Files that come in pieces over the control line: kernels, ramdisks, disks.
//!
//! [`Uploads`] keeps the books; where the bytes go is the business of a
//! [`Storage`]. Pieces come in order. A piece that is there already is answered
//! as if it were new, so that a client that lost an answer just sends again; a
//! client that lost itself asks with the same `upload.begin` how far it came.

use crate::guests::Quoted;
use crate::protocol::{MAX_CHUNK, MAX_FILE_NAME};
use crate::refusal::{ErrorCode, Refusal};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use crc32fast::Hasher;
use serde::{Deserialize, Serialize};

/// Files that can be there at once.
pub const MAX_UPLOADS: usize = 16;

/// The memory that the bytes of files go to.
pub trait Storage {
    /// A file's place.
    type File;

    /// Makes room for a file of `size` bytes.
    ///
    /// # Errors
    /// There is no room: [`ErrorCode::NoMemory`], with the figures.
    fn allocate(&mut self, size: u64) -> Result<Self::File, Refusal>;

    /// Writes `bytes` at `offset`, which lie within the file and behind what
    /// was written before.
    ///
    /// # Errors
    /// The bytes can't be written; nothing was.
    fn write(&mut self, file: &mut Self::File, offset: u64, bytes: &[u8]) -> Result<(), Refusal>;

    /// Gives the room back.
    fn release(&mut self, file: Self::File);
}

/// How far a file has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadState {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// Bytes that are there, from the first on.
    pub received: u64,
    /// It is whole, and was checked.
    pub complete: bool,
}

#[derive(Debug)]
struct Upload<F> {
    name: String,
    size: u64,
    crc32: u32,
    received: u64,
    hasher: Hasher,
    complete: bool,
    /// How many guests are made of the file.
    users: u32,
    file: F,
}

impl<F> Upload<F> {
    fn state(&self) -> UploadState {
        let Self { name, size, received, complete, .. } = self;
        UploadState { name: name.clone(), size: *size, received: *received, complete: *complete }
    }
}

/// The files.
#[derive(Debug)]
pub struct Uploads<S: Storage> {
    storage: S,
    files: Vec<Upload<S::File>>,
    /// Bytes that all files may have together.
    limit: u64,
}

/// Whether a file may have this name: 1 to 100 visible ASCII characters.
#[must_use]
pub fn is_file_name(name: &str) -> bool {
    (1..=MAX_FILE_NAME).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}

impl<S: Storage> Uploads<S> {
    /// No files yet, and `limit` bytes for all of them together.
    pub const fn new(storage: S, limit: u64) -> Self {
        Self { storage, files: Vec::new(), limit }
    }

    /// Bytes that all files may have together.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// A file will come. For the same file once more, this tells how far it has come.
    ///
    /// # Errors
    /// There is another of that name; there is no room; there are too many.
    pub fn begin(&mut self, name: &str, size: u64, crc32: u32) -> Result<UploadState, Refusal> {
        if let Some(file) = self.files.iter().find(|file| file.name == name) {
            if (file.size, file.crc32) == (size, crc32) {
                return Ok(file.state());
            }
            let message = format!(
                "there is another file {}: {} bytes, CRC-32 {:#010x}; delete it first, or take \
                 another name",
                Quoted(name),
                file.size,
                file.crc32
            );
            return Err(Refusal::new(ErrorCode::Exists, message));
        }
        if self.files.len() >= MAX_UPLOADS {
            let message = format!("there are {MAX_UPLOADS} files, and no more are allowed");
            return Err(Refusal::new(ErrorCode::TooMany, message));
        }
        let used = self.files.iter().fold(0_u64, |sum, file| sum.saturating_add(file.size));
        let left = self.limit.saturating_sub(used);
        if size == 0 || size > left {
            let message = format!("\"size\" is {size}: 1 to {left} bytes are allowed now");
            return Err(Refusal::new(ErrorCode::UploadSize, message));
        }
        let file = self.storage.allocate(size)?;
        let new = Upload {
            name: name.into(),
            size,
            crc32,
            received: 0,
            hasher: Hasher::new(),
            complete: false,
            users: 0,
            file,
        };
        let state = new.state();
        self.files.push(new);
        Ok(state)
    }

    /// A piece of a file.
    ///
    /// # Errors
    /// No such file; the piece does not begin where the file ends so far, is too
    /// large, or is damaged. Nothing was written.
    pub fn chunk(
        &mut self,
        name: &str,
        offset: u64,
        data: &[u8],
        crc32: u32,
    ) -> Result<UploadState, Refusal> {
        let file =
            self.files.iter_mut().find(|file| file.name == name).ok_or_else(|| unknown(name))?;
        let got = crc32fast::hash(data);
        if got != crc32 {
            let message =
                format!("the piece at {offset} is damaged: CRC-32 {got:#010x}, not {crc32:#010x}");
            return Err(Refusal::new(ErrorCode::UploadChecksum, message));
        }
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= file.size);
        let Some(end) = end.filter(|_| (1..=MAX_CHUNK).contains(&data.len())) else {
            let message = format!(
                "a piece of {} bytes at {offset}: 1 to {MAX_CHUNK} bytes are allowed, and the \
                 file has {}",
                data.len(),
                file.size
            );
            return Err(Refusal::new(ErrorCode::UploadSize, message));
        };
        if end <= file.received {
            return Ok(file.state());
        }
        if offset != file.received {
            let message = format!("\"offset\" is {offset}, and {} is next", file.received);
            return Err(Refusal::new(ErrorCode::UploadOffset, message));
        }
        self.storage.write(&mut file.file, offset, data)?;
        file.hasher.update(data);
        file.received = end;
        Ok(file.state())
    }

    /// The file is whole.
    ///
    /// # Errors
    /// No such file; it is not whole, or damaged.
    pub fn end(&mut self, name: &str) -> Result<UploadState, Refusal> {
        let file =
            self.files.iter_mut().find(|file| file.name == name).ok_or_else(|| unknown(name))?;
        if file.received != file.size {
            let message = format!("{} of {} bytes are there", file.received, file.size);
            return Err(Refusal::new(ErrorCode::UploadSize, message));
        }
        let got = file.hasher.clone().finalize();
        if got != file.crc32 {
            let message = format!(
                "the file is damaged: CRC-32 {got:#010x}, not {:#010x}; delete it and begin again",
                file.crc32
            );
            return Err(Refusal::new(ErrorCode::UploadChecksum, message));
        }
        file.complete = true;
        Ok(file.state())
    }

    /// Forgets a file.
    ///
    /// # Errors
    /// No such file; a guest is made of it.
    pub fn delete(&mut self, name: &str) -> Result<(), Refusal> {
        let at = self.files.iter().position(|file| file.name == name);
        let at = at.ok_or_else(|| unknown(name))?;
        if let Some(users @ 1..) = self.files.get(at).map(|file| file.users) {
            let message = format!("{users} guest(s) are made of it: delete them first");
            return Err(Refusal::new(ErrorCode::WrongState, message));
        }
        let gone = self.files.swap_remove(at);
        self.storage.release(gone.file);
        Ok(())
    }

    /// A guest is made of these files from now on: they stay.
    ///
    /// # Errors
    /// One of them is not there, or not whole; then none is held.
    pub fn hold<'n>(
        &mut self,
        names: impl Iterator<Item = &'n str> + Clone,
    ) -> Result<(), Refusal> {
        for name in names.clone() {
            self.complete(name)?;
        }
        for name in names {
            if let Some(file) = self.files.iter_mut().find(|file| file.name == name) {
                file.users = file.users.saturating_add(1);
            }
        }
        Ok(())
    }

    /// A guest that was made of these files is deleted.
    pub fn let_go<'n>(&mut self, names: impl Iterator<Item = &'n str>) {
        for name in names {
            if let Some(file) = self.files.iter_mut().find(|file| file.name == name) {
                file.users = file.users.saturating_sub(1);
            }
        }
    }

    /// A whole file.
    ///
    /// # Errors
    /// It is not there, or not whole.
    pub fn complete(&self, name: &str) -> Result<&S::File, Refusal> {
        let file = self.files.iter().find(|file| file.name == name).ok_or_else(|| unknown(name))?;
        if file.complete {
            return Ok(&file.file);
        }
        let message = format!("file {} is not whole: upload.end has not been said", Quoted(name));
        Err(Refusal::new(ErrorCode::NoUpload, message))
    }

    /// Names of the files that are whole.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().filter(|file| file.complete).map(|file| file.name.as_str())
    }
}

fn unknown(name: &str) -> Refusal {
    Refusal::new(ErrorCode::NoUpload, format!("there is no file {}", Quoted(name)))
}
