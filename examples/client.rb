#!/usr/bin/ruby
# SPDX-License-Identifier: BSD-3-Clause
# Fetches a page over TLS: client.rb HOST PORT
require "socket"

IPPROTO_TLS, TLS_HOSTNAME, TLS_ERROR = 205, 85, 100 # in_tls.h

host, port = ARGV
tls = Socket.new(:INET, :STREAM, IPPROTO_TLS)
tls.setsockopt(IPPROTO_TLS, TLS_HOSTNAME, "#{host}\0")
begin
  tls.connect(Addrinfo.getaddrinfo(host, port, :INET, :STREAM).first)
rescue SystemCallError => error
  why = tls.getsockopt(IPPROTO_TLS, TLS_ERROR).data.unpack1("Z*")
  abort "#{error.message}: #{why}"
end
tls.write("GET / HTTP/1.0\r\nHost: #{host}\r\n\r\n")
IO.copy_stream(tls, $stdout)
