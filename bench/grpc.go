package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/encoding/protowire"
)

// grpcConn is a connection of a cheap gRPC client: the header of a request is made once, in a form
// that may be sent again, and its message differs in the digits of the key only. Of the answer no
// more is read than what shows that it is one. Many clients share it.
type grpcConn struct {
	conn net.Conn

	mu       sync.Mutex // guards what follows, and writes to conn
	out      *bufio.Writer
	frames   *http2.Framer
	streams  map[uint32]*grpcCall
	next     uint32 // number of the next stream
	window   int64  // bytes that may be sent, of all streams
	initial  int64  // bytes that may be sent on a new stream
	widened  *sync.Cond
	received uint32 // bytes that the server has not been told to send more for
	err      error  // why it has ended
}

// grpcCall is one request.
type grpcCall struct {
	window int64
	answer []byte // messages, each with the five bytes before it
	done   chan error
}

// receiveWindow is how much the server may send before it is told to go on.
const receiveWindow = 1 << 30

func dialGRPC(endpoint string) (*grpcConn, error) {
	at, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	conn, err := net.DialTimeout("tcp", at.Host, 5*time.Second)
	if err != nil {
		return nil, err
	}
	c := &grpcConn{conn: conn, out: bufio.NewWriterSize(conn, 64<<10), streams: make(map[uint32]*grpcCall), next: 1,
		window: 65535, initial: 65535}
	c.widened = sync.NewCond(&c.mu)
	c.frames = http2.NewFramer(c.out, bufio.NewReaderSize(conn, 64<<10))
	c.frames.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.frames.SetReuseFrames()
	_, err = c.out.WriteString(http2.ClientPreface)
	err = errors.Join(err, c.frames.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: receiveWindow}),
		c.frames.WriteWindowUpdate(0, receiveWindow-65535), c.out.Flush())
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	go func() { c.end(c.read()) }()
	return c, nil
}

// grpcHeader is the header block of calls of a method. Its fields are none that the server would keep.
func grpcHeader(endpoint, method string) []byte {
	var b []byte
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", method},
		{":authority", strings.TrimPrefix(endpoint, "http://")}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		b = append(b, 0) // literal, not indexed (RFC 7541, section 6.2.2), the name too; all are shorter than 127 bytes
		for _, text := range f {
			b = append(append(b, byte(len(text))), text...)
		}
	}
	return b
}

// grpcMessage is m as a gRPC message.
func grpcMessage(m []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(m))), m...)
}

// call returns the answer's message. Its error is for any status but OK.
func (c *grpcConn) call(header, message []byte) ([]byte, error) {
	call := &grpcCall{done: make(chan error, 1)}
	if err := c.send(call, header, message); err != nil {
		return nil, err
	}
	if err := <-call.done; err != nil {
		return nil, err
	}
	if len(call.answer) < 5 || call.answer[0] != 0 || int(binary.BigEndian.Uint32(call.answer[1:])) != len(call.answer)-5 {
		return nil, fmt.Errorf("an answer of %d bytes is not one message", len(call.answer))
	}
	return call.answer[5:], nil
}

func (c *grpcConn) send(call *grpcCall, header, message []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	id := c.next
	c.next += 2
	call.window = c.initial
	c.streams[id] = call
	err := c.frames.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: header, EndHeaders: true})
	for err == nil && len(message) > 0 {
		for c.err == nil && min(c.window, call.window) <= 0 {
			if err := c.out.Flush(); err != nil {
				return err
			}
			c.widened.Wait()
		}
		if c.err != nil {
			return c.err
		}
		n := int(min(int64(len(message)), 16<<10, c.window, call.window))
		c.window, call.window = c.window-int64(n), call.window-int64(n)
		err = c.frames.WriteData(id, n == len(message), message[:n])
		message = message[n:]
	}
	return errors.Join(err, c.out.Flush())
}

// read reads what the server sends until the connection ends.
func (c *grpcConn) read() error {
	for {
		f, err := c.frames.ReadFrame()
		if err == nil {
			err = c.handle(f)
		}
		if err != nil {
			return err
		}
	}
}

func (c *grpcConn) handle(f http2.Frame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	call := c.streams[f.Header().StreamID]
	switch f := f.(type) {
	case *http2.DataFrame:
		if call != nil {
			call.answer = append(call.answer, f.Data()...)
		}
		if c.received += f.Length; c.received >= receiveWindow/2 {
			n := c.received
			c.received = 0
			return errors.Join(c.frames.WriteWindowUpdate(0, n), c.out.Flush())
		}
	case *http2.MetaHeadersFrame:
		if call == nil || !f.StreamEnded() {
			return nil
		}
		delete(c.streams, f.StreamID)
		call.done <- grpcStatus(f)
	case *http2.RSTStreamFrame:
		if call != nil {
			delete(c.streams, f.StreamID)
			call.done <- fmt.Errorf("the server ended the stream: %v", f.ErrCode)
		}
	case *http2.WindowUpdateFrame:
		switch {
		case f.StreamID == 0:
			c.window += int64(f.Increment)
		case call != nil:
			call.window += int64(f.Increment)
		}
		c.widened.Broadcast()
	case *http2.SettingsFrame:
		if f.IsAck() {
			return nil
		}
		if initial, ok := f.Value(http2.SettingInitialWindowSize); ok {
			for _, call := range c.streams {
				call.window += int64(initial) - c.initial
			}
			c.initial = int64(initial)
			c.widened.Broadcast()
		}
		return errors.Join(c.frames.WriteSettingsAck(), c.out.Flush())
	case *http2.PingFrame:
		if !f.IsAck() {
			return errors.Join(c.frames.WritePing(true, f.Data), c.out.Flush())
		}
	case *http2.GoAwayFrame:
		return fmt.Errorf("the server ends the connection: %v", f.ErrCode)
	}
	return nil
}

// grpcStatus is the error in the trailer of an answer, nil for OK.
func grpcStatus(f *http2.MetaHeadersFrame) error {
	status, message := "", ""
	for _, field := range f.RegularFields() {
		switch field.Name {
		case "grpc-status":
			status = field.Value
		case "grpc-message":
			message = field.Value
		}
	}
	if status != "0" {
		return fmt.Errorf("gRPC status %q: %s", status, message)
	}
	return nil
}

// end ends the connection and all calls under way.
func (c *grpcConn) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
	_ = c.conn.Close()
	for id, call := range c.streams {
		delete(c.streams, id)
		call.done <- c.err
	}
	c.widened.Broadcast()
}

// close ends the connection. Any goroutine may call it.
func (c *grpcConn) close() { c.end(net.ErrClosed) }

// etcdGRPC is a client of etcd over a grpcConn.
type etcdGRPC struct {
	conn          *grpcConn
	putHeader     []byte
	rangeHeader   []byte
	put, rangeOne []byte // messages, whose key's digits are changed
}

func newEtcdGRPC(conn *grpcConn, endpoint string, serializable bool) *etcdGRPC {
	put := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), key(0))
	put = protowire.AppendBytes(protowire.AppendTag(put, 2, protowire.BytesType), value)
	one := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), key(0))
	if serializable {
		one = protowire.AppendVarint(protowire.AppendTag(one, 7, protowire.VarintType), 1)
	}
	return &etcdGRPC{
		conn: conn, put: grpcMessage(put), rangeOne: grpcMessage(one),
		putHeader:   grpcHeader(endpoint, "/etcdserverpb.KV/Put"),
		rangeHeader: grpcHeader(endpoint, "/etcdserverpb.KV/Range"),
	}
}

func (c *etcdGRPC) write(k int) error {
	putKey(c.put, k)
	_, err := c.conn.call(c.putHeader, c.put)
	return err
}

func (c *etcdGRPC) read(k int) error {
	putKey(c.rangeOne, k)
	answer, err := c.conn.call(c.rangeHeader, c.rangeOne)
	if err == nil && len(answer) < len(value) {
		err = errors.New("etcd has not the value of " + key(k) + ": an answer of " + strconv.Itoa(len(answer)) + " bytes")
	}
	return err
}
