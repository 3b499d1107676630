#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# Fetches a page over TLS: client.sh HOST PORT
set -eu

# For socat all is numbers: 2 is AF_INET, 205 IPPROTO_TLS, 85 TLS_HOSTNAME (in_tls.h), and the
# address is a sockaddr_in after its family: the port, the address and 8 unused bytes.
address=$(getent -A ahostsv4 "$1" | { read -r address _ && echo "$address"; })
# shellcheck disable=SC2046,SC2183 # four words
to=$(printf 'x%04x%02x%02x%02x%02x%016d' "$2" $(echo "$address" | tr . ' ') 0)
printf 'GET / HTTP/1.0\r\nHost: %s\r\n\r\n' "$1" |
	socat -t 60 - "SOCKET-CONNECT:2:205:$to,setsockopt-listen=205:85:\\\"$1\\\""
