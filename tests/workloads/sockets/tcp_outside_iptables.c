// flags: --tcp-established --network-lock iptables
// peer: no, the same connections are tried with its nftables
// differs: descriptor socket.IPPROTO_TCP.10, they are at work
// differs: descriptor socket.SOL_SOCKET.8, they are at work
// differs: descriptor socket.SOL_SOCKET.7, they are at work
// differs: descriptor socket.diag.received, they are at work
// differs: descriptor socket.diag.sent, they are at work
// differs: descriptor socket.diag.timer, they are at work
// differs: descriptor socket.diag.memory.*, they are at work
// differs: descriptor socket.diag.tcp.notsent_bytes, they are at work
// differs: descriptor socket.ready, they are at work
// differs: descriptor socket.unread, they are at work
// differs: descriptor socket.unsent, they are at work
/* The connections of tcp_outside.c, while rules of iptables drop their packets. */
#include "tcp_outside.c"
