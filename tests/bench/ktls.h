/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef BENCH_KTLS_H
#define BENCH_KTLS_H

#include <openssl/ssl.h>

/* Makes the handshakes of this context remember their traffic secrets. */
void ktls_prepare(SSL_CTX *ctx);

/*
 * Gives the keys of a finished TLS 1.3 handshake to the kernel, both
 * directions, on the TCP socket fd. Nothing may have been sent or received
 * under these keys yet. Exits with a sentence if the kernel refuses.
 */
void ktls_install(SSL *ssl, int fd);

/* Sends a close_notify alert on a socket with kernel TLS. */
void ktls_close_notify(int fd);

#endif
