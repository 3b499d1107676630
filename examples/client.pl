#!/usr/bin/perl
# SPDX-License-Identifier: BSD-3-Clause
# Fetches a page over TLS: client.pl HOST PORT
use strict;
use warnings;
use Socket;
use constant { IPPROTO_TLS => 205, TLS_HOSTNAME => 85, TLS_ERROR => 100 };    # in_tls.h

my ($host, $port) = @ARGV;
my $address = inet_aton($host) or die "$host: no such host\n";
socket(my $tls, AF_INET, SOCK_STREAM, IPPROTO_TLS) or die "socket: $!\n";
setsockopt($tls, IPPROTO_TLS, TLS_HOSTNAME, "$host\0") or die "setsockopt: $!\n";
unless (connect($tls, pack_sockaddr_in($port, $address))) {
    my $error = $!;
    die "connect: $error: ", unpack("Z*", getsockopt($tls, IPPROTO_TLS, TLS_ERROR) // ""), "\n";
}
syswrite($tls, "GET / HTTP/1.0\r\nHost: $host\r\n\r\n") or die "write: $!\n";
my $got;
print $_ while $got = sysread($tls, $_, 4096);
defined $got or die "read: $!\n";
