# SPDX-License-Identifier: BSD-3-Clause
"""Peers to talk TLS with: a private PKI, real servers, hostile ones, and clients in C."""
