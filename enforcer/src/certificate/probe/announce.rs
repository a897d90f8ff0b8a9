//! Telling of a connection before it is made. A pod that is enforced at its own device cannot know the agent's checks by a mark,
//! which does not come into its network namespace.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use tokio::net::TcpSocket;

/// What is told of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// It is about to be made.
    Begins,
    /// It is over.
    Over,
}

/// Is told of every connection: own address, server, and what happens.
type Told = dyn Fn(SocketAddr, SocketAddr, Notice) + Send + Sync;

/// Tells of connections.
#[derive(Clone)]
pub struct Announcer(Arc<Told>);

impl Announcer {
    /// Tells this function.
    pub fn new(told: impl Fn(SocketAddr, SocketAddr, Notice) + Send + Sync + 'static) -> Self {
        Self(Arc::new(told))
    }

    /// Binds a socket to the address that it would get and to a free port, and tells of it.
    pub(super) fn announce(&self, socket: &TcpSocket, server: SocketAddr) -> io::Result<Announced> {
        let any: IpAddr =
            if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        // A datagram socket chooses its address as the connection would, and sends nothing.
        let chooser = UdpSocket::bind(SocketAddr::new(any, 0))?;
        chooser.connect(server)?;
        let mut own = chooser.local_addr()?;
        own.set_port(0);
        socket.bind(own)?;
        let own = socket.local_addr()?;
        (self.0)(own, server, Notice::Begins);
        Ok(Announced { announcer: self.clone(), own, server })
    }
}

/// Tells that the connection is over when dropped.
pub(super) struct Announced {
    announcer: Announcer,
    own: SocketAddr,
    server: SocketAddr,
}

impl Drop for Announced {
    fn drop(&mut self) {
        (self.announcer.0)(self.own, self.server, Notice::Over);
    }
}

impl fmt::Debug for Announcer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Announcer")
    }
}

impl PartialEq for Announcer {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Announcer {}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn a_connection_is_told_of_before_it_is_made_and_when_it_is_over() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).expect("a port");
            let server = listener.local_addr().expect("its address");
            let told = Arc::new(Mutex::new(Vec::new()));
            let list = told.clone();
            let announcer =
                Announcer::new(move |own, to, notice| list.lock().expect("the list").push((own, to, notice)));
            let socket = if server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
            let socket = socket.expect("a socket");
            let told_of = announcer.announce(&socket, server).expect("announced");
            let before = told.lock().expect("the list").clone();
            let stream = socket.connect(server).await.expect("connected");
            let own = stream.local_addr().expect("its address");
            assert_eq!(before, [(own, server, Notice::Begins)]);
            drop(told_of);
            assert_eq!(told.lock().expect("the list").last(), Some(&(own, server, Notice::Over)));
        }
    }
}
