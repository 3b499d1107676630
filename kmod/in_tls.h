/* SPDX-License-Identifier: ((GPL-2.0 WITH Linux-syscall-note) OR BSD-3-Clause) */
/* Made from netlink_proto/ssa.yaml by netlink_proto/generate.py: do not edit. */

/*
 * TLS sockets for programs: socket(AF_INET, SOCK_STREAM, IPPROTO_TLS) is a TLS
 * connection that is used like a TCP one. There is nothing to link with.
 */
#ifndef _UAPI_IN_TLS_H
#define _UAPI_IN_TLS_H

#include <linux/socket.h>
#include <linux/types.h>

/*
 * Protocol of a TLS socket and level of its options, as in the Secure Socket
 * API 0.67. Not an IP protocol: nothing on the wire carries it.
 */
#ifndef IPPROTO_TLS
#define IPPROTO_TLS			205
#endif

/*
 * Family of struct sockaddr_host. The Secure Socket API used 43, which is
 * AF_SMC today. 18 is AF_ASH: reserved since Linux 2.0, never implemented by
 * any kernel, and below AF_MAX, so that the kernel lets it be registered.
 */
#ifndef AF_HOSTNAME
#define AF_HOSTNAME			18
#endif

/* Size of the name in struct sockaddr_host, its NUL included. */
#ifndef TLS_HOST_ADDR_SIZE
#define TLS_HOST_ADDR_SIZE		120
#endif

/*
 * Options of level IPPROTO_TLS, numbered as in the Secure Socket API 0.67;
 * ours from 130.
 */

/*
 * Host name to connect to and to verify; on an accepted socket the name asked
 * for.
 */
#define TLS_HOSTNAME			85

/* Path or PEM: trust exactly these. */
#define TLS_TRUSTED_PEER_CERTIFICATES	87

/* Path or PEM/DER: own certificate chain. */
#define TLS_CERTIFICATE_CHAIN		88

/* Path or PEM/DER: key of the chain given before it. */
#define TLS_PRIVATE_KEY			89

/* Protocols to offer, in order, as h2,http/1.1; get: the chosen one. */
#define TLS_ALPN			90

/* Seconds after its full handshake that a session may be resumed. */
#define TLS_SESSION_TTL			91

/* Cipher not to use. */
#define TLS_DISABLE_CIPHER		92

/* Name of the peer from its certificate. */
#define TLS_PEER_IDENTITY		93

/* 0 none, 1 optional, 2 required. */
#define TLS_REQUEST_PEER_AUTH		94

/* The peer's certificates, PEM. */
#define TLS_PEER_CERTIFICATE_CHAIN	95

/* Number of the socket, u64. */
#define TLS_ID				96

/* Ciphers allowed, separated by colons. */
#define TLS_TRUSTED_CIPHERS		97

/* Cipher of the connection. */
#define TLS_CHOSEN_CIPHER		98

/* Sentence that says why the last operation failed. */
#define TLS_ERROR			100

/* 1: every check of revocation; 0: none. Get: 1 if there is any. */
#define TLS_REVOCATION_CHECKS		102

/* 1: check the OCSP response that a server staples, and want one. */
#define TLS_OCSP_STAPLED_CHECKS		103

/* 1: ask the OCSP responders that the peer's certificates name. */
#define TLS_OCSP_CHECKS			104

/* 1: look into the CRLs that the peer's certificates name. */
#define TLS_CRL_CHECKS			105

/* 1: answers may be used again while they are valid; 0: ask each time. */
#define TLS_CACHED_REV_CHECKS		106

/*
 * Number (u64) of a socket of the same user whose settings and sessions are
 * taken.
 */
#define TLS_CONTEXT			107

/*
 * 0 or 1: keep the sessions of connections that this socket makes, and resume
 * them.
 */
#define TLS_SESSION_REUSE		108

/* 1 if the connection resumed a session. */
#define TLS_RESUMED_SESSION		109

/* Cipher to use. */
#define TLS_ENABLE_CIPHER		110

/* 0x0303 or 0x0304. */
#define TLS_VERSION_MIN			111

/* 0x0303 or 0x0304. */
#define TLS_VERSION_MAX			112

/* Version of the connection. */
#define TLS_VERSION_CONN		113

/* 1: a listening socket staples OCSP responses to its certificates. */
#define TLS_SERVER_OCSP_STAPLING	122

/* Text: ktls or channel. */
#define TLS_TRANSPORT			130

/* The name of TLS_HOSTNAME in other versions of the Secure Socket API. */
#define TLS_REMOTE_HOSTNAME		TLS_HOSTNAME

/**
 * struct host_addr - A host name in place of an address.
 * @name: The name, NUL-terminated.
 */
struct host_addr {
	unsigned char name[TLS_HOST_ADDR_SIZE];
};

/**
 * struct sockaddr_host - What connect() takes instead of an address.
 * @sh_family: AF_HOSTNAME.
 * @sh_port: Port, in network byte order.
 * @sh_addr: The host; its name is also the one that the certificate must carry.
 */
struct sockaddr_host {
	__kernel_sa_family_t sh_family;
	__be16 sh_port;
	struct host_addr sh_addr;
};

#endif /* _UAPI_IN_TLS_H */
