// flags: --tcp-established --network-lock iptables
// peer: no, the same connections are tried with its nftables
/* The connections of tcp_connections.c, while rules of iptables drop their packets. */
#include "tcp_connections.c"
