// SPDX-License-Identifier: BSD-3-Clause
// Fetches a page over TLS: go run client.go HOST PORT
package main

import ("log"; "net"; "os"; . "syscall"; . "unsafe")

func main() { // Of in_tls.h: 205 is IPPROTO_TLS, 85 TLS_HOSTNAME, 100 TLS_ERROR.
	why, size := [512]byte{}, uint32(512)
	to, unknown := net.ResolveTCPAddr("tcp4", os.Args[1]+":"+os.Args[2])
	fd, err := Socket(AF_INET, SOCK_STREAM, 205)
	if unknown != nil || err != nil { log.Fatalln(unknown, err) }
	SetsockoptString(fd, 205, 85, os.Args[1])
	err = Connect(fd, &SockaddrInet4{Port: to.Port, Addr: *(*[4]byte)(to.IP.To4())})
	if err != nil {
		Syscall6(SYS_GETSOCKOPT, uintptr(fd), 205, 100,
			uintptr(Pointer(&why)), uintptr(Pointer(&size)), 0)
		log.Fatalf("connect: %v: %s", err, why[:size-1])
	}
	tls := os.NewFile(uintptr(fd), "tls")
	tls.WriteString("GET / HTTP/1.0\r\nHost: " + os.Args[1] + "\r\n\r\n")
	_, err = os.Stdout.ReadFrom(tls)
	if err != nil { log.Fatalln(err) }
}
