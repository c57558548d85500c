//! A private etcd, and a wire that can be cut.

use super::{eventually, tool};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use xtask::postgres::free_port;

/// A server with a directory and ports of its own; it ends with its handle.
#[derive(Debug)]
pub struct Etcd {
    _directory: TempDir,
    /// Where clients come in.
    pub address: SocketAddr,
    child: Child,
}

/// Starts a server.
pub fn etcd() -> Etcd {
    let directory = tempfile::tempdir().expect("a directory");
    let (client, peer) = (free_port(), free_port());
    let (client_url, peer_url) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let mut server = tool("etcd", "etcd-server");
    server.args(["--data-dir"]).arg(directory.path());
    server.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
    server.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
    server.args(["--initial-cluster", &format!("default={peer_url}")]);
    let child = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("etcd starts");
    let etcd = Etcd { _directory: directory, address: ([127, 0, 0, 1], client).into(), child };
    eventually("etcd answers", || ureq::get(format!("{client_url}/health")).call().ok());
    etcd
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A wire to an address that can be cut and mended.
#[derive(Debug)]
pub struct Wire {
    /// Its near end.
    pub address: SocketAddr,
    is_cut: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

/// Lays a wire.
pub fn wire(to: SocketAddr) -> Wire {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let (is_cut, open) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let (cut, streams) = (Arc::clone(&is_cut), Arc::clone(&open));
    std::thread::spawn(move || {
        for near in listener.incoming().map_while(Result::ok) {
            if cut.load(Ordering::Acquire) {
                continue;
            }
            let Ok(far) = TcpStream::connect(to) else { continue };
            let mut ends = Vec::new();
            for (from, to) in [(&near, &far), (&far, &near)] {
                let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else { continue };
                std::thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
            ends.extend([near, far]);
            streams.lock().expect("streams").extend(ends);
        }
    });
    Wire { address, is_cut, open }
}

impl Wire {
    /// Nothing passes any more.
    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::Release);
        for stream in self.open.lock().expect("streams").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// New connections pass again.
    pub fn mend(&self) {
        self.is_cut.store(false, Ordering::Release);
    }
}
