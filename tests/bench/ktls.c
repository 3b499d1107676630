// SPDX-License-Identifier: BSD-3-Clause
/*
 * Kernel TLS by hand: Debian's OpenSSL 3.0 is built without it. The traffic
 * secrets come from the key log callback, the keys from RFC 8446, 7.3.
 */
#include <err.h>
#include <linux/tls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "ktls.h"

#ifndef SOL_TLS
#define SOL_TLS 282
#endif

#define SECRET_MAX	48	/* SHA-384 */
#define IV_SIZE		12
#define KEY_MAX		32
#define ALERT_RECORD	21

struct secrets {
	unsigned char client[SECRET_MAX];
	unsigned char server[SECRET_MAX];
	size_t length;
};

static int secrets_index = -1;

static void secrets_free(void *parent, void *data, CRYPTO_EX_DATA *ad, int index,
			 long argl, void *argp)
{
	(void)parent, (void)ad, (void)index, (void)argl, (void)argp;
	free(data);
}

static size_t from_hex(const char *hex, unsigned char *out)
{
	size_t length = 0;
	unsigned int byte;

	while (length < SECRET_MAX && sscanf(hex + 2 * length, "%2x", &byte) == 1)
		out[length++] = byte;
	return length;
}

/* A line is: label, client random, secret; the latter two in hexadecimal. */
static void on_key_log(const SSL *ssl, const char *line)
{
	struct secrets *secrets = SSL_get_ex_data(ssl, secrets_index);
	const char *secret = strrchr(line, ' ');

	if (!secrets) {
		secrets = calloc(1, sizeof(*secrets));
		if (!secrets || !SSL_set_ex_data((SSL *)ssl, secrets_index, secrets))
			errx(1, "no memory for the traffic secrets");
	}
	if (!strncmp(line, "CLIENT_TRAFFIC_SECRET_0 ", 24))
		secrets->length = from_hex(secret + 1, secrets->client);
	else if (!strncmp(line, "SERVER_TRAFFIC_SECRET_0 ", 24))
		secrets->length = from_hex(secret + 1, secrets->server);
}

void ktls_prepare(SSL_CTX *ctx)
{
	if (secrets_index < 0)
		secrets_index = SSL_get_ex_new_index(0, NULL, NULL, NULL, secrets_free);
	SSL_CTX_set_keylog_callback(ctx, on_key_log);
}

/* HKDF-Expand-Label (RFC 8446, 7.1) without context; one block is enough. */
static void expand_label(const EVP_MD *md, const unsigned char *secret, size_t secret_length,
			 const char *label, unsigned char *out, size_t length)
{
	unsigned char info[64], block[EVP_MAX_MD_SIZE];
	size_t label_length = strlen(label), at = 0;

	info[at++] = length >> 8;
	info[at++] = length;
	info[at++] = 6 + label_length;
	memcpy(info + at, "tls13 ", 6);
	at += 6;
	memcpy(info + at, label, label_length);
	at += label_length;
	info[at++] = 0;		/* length of the context */
	info[at++] = 1;		/* number of the HKDF block */
	if (!HMAC(md, secret, secret_length, info, at, block, NULL))
		errx(1, "HMAC failed");
	memcpy(out, block, length);
}

static void install(int fd, int direction, const SSL_CIPHER *cipher,
		    const unsigned char *secret, size_t secret_length)
{
	union {
		struct tls_crypto_info info;
		struct tls12_crypto_info_aes_gcm_128 aes128;
		struct tls12_crypto_info_aes_gcm_256 aes256;
		struct tls12_crypto_info_chacha20_poly1305 chacha;
	} crypto = { .info.version = TLS_1_3_VERSION };
	const EVP_MD *md = SSL_CIPHER_get_handshake_digest(cipher);
	unsigned char key[KEY_MAX], iv[IV_SIZE];
	size_t size;

	expand_label(md, secret, secret_length, "iv", iv, IV_SIZE);
	switch (SSL_CIPHER_get_protocol_id(cipher)) {
	case 0x1301:
		crypto.info.cipher_type = TLS_CIPHER_AES_GCM_128;
		expand_label(md, secret, secret_length, "key", key, 16);
		memcpy(crypto.aes128.key, key, 16);
		memcpy(crypto.aes128.salt, iv, 4);
		memcpy(crypto.aes128.iv, iv + 4, 8);
		size = sizeof(crypto.aes128);
		break;
	case 0x1302:
		crypto.info.cipher_type = TLS_CIPHER_AES_GCM_256;
		expand_label(md, secret, secret_length, "key", key, 32);
		memcpy(crypto.aes256.key, key, 32);
		memcpy(crypto.aes256.salt, iv, 4);
		memcpy(crypto.aes256.iv, iv + 4, 8);
		size = sizeof(crypto.aes256);
		break;
	case 0x1303:
		crypto.info.cipher_type = TLS_CIPHER_CHACHA20_POLY1305;
		expand_label(md, secret, secret_length, "key", key, 32);
		memcpy(crypto.chacha.key, key, 32);
		memcpy(crypto.chacha.iv, iv, 12);
		size = sizeof(crypto.chacha);
		break;
	default:
		errx(1, "kernel TLS is wanted, but the handshake chose %s",
		     SSL_CIPHER_get_name(cipher));
	}
	if (setsockopt(fd, SOL_TLS, direction, &crypto, size))
		err(1, "the kernel does not take the keys for %s", SSL_CIPHER_get_name(cipher));
}

void ktls_install(SSL *ssl, int fd)
{
	const struct secrets *secrets = SSL_get_ex_data(ssl, secrets_index);
	const SSL_CIPHER *cipher = SSL_get_current_cipher(ssl);
	bool server = SSL_is_server(ssl);
	int on = 1;

	if (!secrets || !secrets->length)
		errx(1, "TLS 1.3 is wanted, but the handshake chose %s", SSL_get_version(ssl));
	if (setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", sizeof("tls")))
		err(1, "kernel TLS cannot be attached (is the module tls loaded?)");
	install(fd, TLS_TX, cipher, server ? secrets->server : secrets->client, secrets->length);
	install(fd, TLS_RX, cipher, server ? secrets->client : secrets->server, secrets->length);
	/*
	 * Without this the kernel decrypts every TLS 1.3 record into a buffer
	 * of its own and copies it, in case that the record is padded.
	 */
	if (setsockopt(fd, SOL_TLS, TLS_RX_EXPECT_NO_PAD, &on, sizeof(on)))
		err(1, "TLS_RX_EXPECT_NO_PAD");
}

void ktls_close_notify(int fd)
{
	unsigned char alert[2] = { 1, 0 };	/* warning, close_notify */
	char control[CMSG_SPACE(1)] = { 0 };
	struct iovec iov = { .iov_base = alert, .iov_len = sizeof(alert) };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_TLS;
	cmsg->cmsg_type = TLS_SET_RECORD_TYPE;
	cmsg->cmsg_len = CMSG_LEN(1);
	*CMSG_DATA(cmsg) = ALERT_RECORD;
	if (sendmsg(fd, &msg, MSG_NOSIGNAL) < 0)
		err(1, "close_notify cannot be sent");
}
