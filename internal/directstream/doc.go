// Package directstream carries gRPC streams over connections of their own, without HTTP/2.
//
// The streams between log members, and from frontends to them, carry few small messages on which everything waits. Over
// HTTP/2 each message passes two more goroutines on either side (one that writes for all streams of a connection, one that
// reads for all), is answered with window updates, and shares its connection with whatever else is under way. Here a stream is
// a connection: the sender's goroutine writes a message with one system call, the receiver's reads it with one, and TCP's flow
// control is the only one there is. The generated code of a service works with it unchanged: Client is a
// grpc.ClientConnInterface, Server a grpc.ServiceRegistrar.
//
// # What it promises
//
// What gRPC promises of a stream: messages arrive in order, once, or the stream ends with an error; the handler's status reaches
// the client (without headers and trailers); the end of either side's context ends the stream on both. A
// side from which nothing comes for SilenceMax, while somebody waits for it, is given up: each side says that it lives every
// AliveInterval, whether its messages are being taken or not.
//
// Unlike gRPC's, Send returns when the kernel has taken the message, and blocks while the other side does not read.
//
// # The wire
//
// One listener serves both kinds of connection: Server.Credentials looks at the first byte after the encryption's handshake,
// which is 'P' for HTTP/2 and magic's otherwise. So the client speaks first, as HTTP/2's must. A connection begins with magic. All that follows, in both directions, are
// frames: a kind, the length of the body as four bytes (big-endian), and the body.
//
//	kind     body                              from
//	method   full name of the method           client, first and once
//	message  encoded message                   both
//	half     none: no messages will follow     client
//	status   google.rpc.Status                 server, last
//	alive    none                              both
//
// Whoever may connect may open streams; who may call which method is for the interceptor, which finds the other side's
// certificate as in any gRPC call (peer.FromContext).
package directstream

import "time"

const (
	// AliveInterval is how often a side that has written nothing says that it is there.
	AliveInterval = 4 * time.Second
	// SilenceMax is how long a side waits for a sign of life, at least; at most AliveInterval more.
	SilenceMax = 3 * AliveInterval
	// methodBytesMax bounds the name of a method.
	methodBytesMax = 256
	// statusBytesMax bounds a status.
	statusBytesMax = 8 << 10
	// readBytes is the buffer in which messages are read; larger ones take a buffer for themselves.
	readBytes = 32 << 10
	// keptBytesMax is the largest buffer for messages that a stream keeps, and that is made before they have come: larger than
	// what the log sends at once, unless one proposal is.
	keptBytesMax = 1100 << 10
	// handshakeMax bounds the time in which a new connection names its method.
	handshakeMax = 10 * time.Second
	// lingerMax bounds the wait for the client to close after it was told the status.
	lingerMax = time.Second
)

// magic begins a connection. The digit is the version of the wire.
const magic = "LMSTREAM1\n"
