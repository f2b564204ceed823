//! The control line's socket, for an emulator that can't make it: its second
//! serial port comes over TCP, and one client after the other gets it.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};

/// Runs side by side that are sensible.
const MOST: u32 = 1000;

/// Whether somebody answers at the socket `path`. A socket that a run left behind which was
/// killed is no more than a name.
fn is_taken(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}

/// The socket `path`, or where another run has it the first of `NAME-2`, `NAME-3` and so on
/// that none has: whoever makes a socket takes its name from the one that was there.
///
/// # Errors
/// Too many runs have sockets there.
pub(crate) fn free_socket(path: &Path) -> Result<PathBuf> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let dot = path.extension().map(|name| format!(".{}", name.to_string_lossy()));
    let dot = dot.unwrap_or_default();
    let others = (2..=MOST).map(|number| path.with_file_name(format!("{stem}-{number}{dot}")));
    std::iter::once(path.to_path_buf())
        .chain(others)
        .find(|path| !is_taken(path))
        .with_context(|| format!("{MOST} runs have sockets beside {}", path.display()))
}

/// The client that has the line.
type Holder = Arc<Mutex<Option<UnixStream>>>;

/// Passes bytes between a machine and the clients of a socket. Dropping it removes
/// the socket; its threads end with the machine.
#[derive(Debug)]
pub(crate) struct Relay(PathBuf);

impl Relay {
    /// Makes the socket at `path`; the machine connects to `machine`.
    pub(crate) fn start(machine: TcpListener, path: &Path) -> Result<Self> {
        // A run that was killed leaves its socket behind.
        match fs::symlink_metadata(path) {
            Ok(there) if there.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => bail!("{} is there and is no socket", path.display()),
            Err(_) => {}
        }
        let clients = UnixListener::bind(path)
            .with_context(|| format!("cannot make the socket {}", path.display()))?;
        std::thread::spawn(move || {
            // The thread waits here for good if the emulator never connects.
            let Ok((machine, _)) = machine.accept() else { return };
            serve(machine, &clients);
        });
        Ok(Self(path.to_path_buf()))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to do.
        let _ = fs::remove_file(&self.0);
    }
}

fn serve(machine: TcpStream, clients: &UnixListener) {
    // Lines are short, and somebody waits for each.
    let _ = machine.set_nodelay(true);
    let holder = Holder::default();
    let Ok(from_machine) = machine.try_clone() else { return };
    let of_reader = Arc::clone(&holder);
    std::thread::spawn(move || from(from_machine, &of_reader));
    for client in clients.incoming() {
        let Ok(client) = client else { return };
        let Ok(copy) = client.try_clone() else { return };
        *lock(&holder) = Some(copy);
        if !to(client, &machine) {
            return;
        }
        *lock(&holder) = None;
    }
}

fn lock(holder: &Holder) -> std::sync::MutexGuard<'_, Option<UnixStream>> {
    holder.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From the machine to whoever has the line; an answer that nobody waits for any
/// more is lost.
fn from(mut machine: TcpStream, holder: &Holder) {
    let mut buffer = [0_u8; 4096];
    while let Ok(count @ 1..) = machine.read(&mut buffer) {
        let client = lock(holder).as_ref().and_then(|client| client.try_clone().ok());
        if let (Some(mut client), Some(bytes)) = (client, buffer.get(..count)) {
            // A client that can't be written to is going; the next one begins anew.
            let _ = client.write_all(bytes);
        }
    }
    // The machine is gone: so is the line.
    if let Some(client) = lock(holder).take() {
        let _ = client.shutdown(std::net::Shutdown::Both);
    }
}

/// From a client to the machine, until the client goes; `false` if the machine went.
fn to(mut client: UnixStream, mut machine: &TcpStream) -> bool {
    let mut buffer = [0_u8; 4096];
    while let Ok(count @ 1..) = client.read(&mut buffer) {
        if machine.write_all(buffer.get(..count).unwrap_or_default()).is_err() {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    #[test]
    fn one_client_after_the_other() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let path = std::env::temp_dir().join(format!("steward-relay-{}", std::process::id()));
        // A socket that a run left behind is no hindrance.
        drop(UnixListener::bind(&path).unwrap());
        let relay = Relay::start(listener, &path).unwrap();
        // A machine that says everything twice, and ends at the word "off".
        let machine = std::thread::spawn(move || {
            let mut machine = TcpStream::connect(address).unwrap();
            let lines = BufReader::new(machine.try_clone().unwrap()).lines();
            for line in lines.map_while(|line| line.ok().filter(|line| line != "off")) {
                machine.write_all(format!("{line}{line}\n").as_bytes()).unwrap();
            }
        });
        for word in ["a", "b"] {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(format!("{word}\n").as_bytes()).unwrap();
            let mut answer = String::new();
            BufReader::new(client).read_line(&mut answer).unwrap();
            assert_eq!(answer, format!("{word}{word}\n"));
        }
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"off\n").unwrap();
        machine.join().unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
        drop(relay);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_answers_is_left_to_its_owner() {
        let dir = std::env::temp_dir().join(format!("steward-sockets-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("control.sock");
        assert_eq!(free_socket(&path).unwrap(), path, "none is there");
        let owner = UnixListener::bind(&path).unwrap();
        let second = free_socket(&path).unwrap();
        assert_eq!(second, dir.join("control-2.sock"));
        let other = UnixListener::bind(&second).unwrap();
        assert_eq!(free_socket(&path).unwrap(), dir.join("control-3.sock"));
        drop((owner, other));
        assert_eq!(free_socket(&path).unwrap(), path, "nobody answers any more");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_file_is_not_taken_for_a_socket() {
        let path = std::env::temp_dir().join(format!("steward-no-relay-{}", std::process::id()));
        fs::write(&path, b"precious").unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        assert!(Relay::start(listener, &path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_file(&path).unwrap();
    }
}
