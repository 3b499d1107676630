// SPDX-License-Identifier: BSD-3-Clause
// Fetches a page over TLS: client HOST PORT. Needs the crate libc.
use std::{env::args, error, io, io::Write, mem, net::*, os::unix::io::FromRawFd};

fn main() -> Result<(), Box<dyn error::Error>> {
    let (host, port) = (args().nth(1).ok_or("no HOST")?, args().nth(2).ok_or("no PORT")?);
    let mut found = format!("{host}:{port}").to_socket_addrs()?;
    let mut to: libc::sockaddr_in = unsafe { mem::zeroed() };
    if let SocketAddr::V4(v4) = found.find(SocketAddr::is_ipv4).ok_or("no IPv4 address")? {
        (to.sin_family, to.sin_port) = (libc::AF_INET as u16, v4.port().to_be());
        to.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
    } // in_tls.h: 205 is IPPROTO_TLS, 85 TLS_HOSTNAME, 100 TLS_ERROR.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 205) };
    unsafe { libc::setsockopt(fd, 205, 85, host.as_ptr().cast(), host.len() as u32) };
    if unsafe { libc::connect(fd, (&to as *const libc::sockaddr_in).cast(), 16) } != 0 {
        let (mut why, mut len, error) = ([0u8; 512], 512, io::Error::last_os_error());
        unsafe { libc::getsockopt(fd, 205, 100, why.as_mut_ptr().cast(), &mut len) };
        Err(format!("{error}: {}", String::from_utf8_lossy(&why).trim_end_matches('\0')))?;
    }
    let mut tls = unsafe { TcpStream::from_raw_fd(fd) };
    write!(tls, "GET / HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    io::copy(&mut tls, &mut io::stdout())?;
    Ok(())
}
