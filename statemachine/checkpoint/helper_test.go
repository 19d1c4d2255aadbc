package checkpoint

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

// resealed gives every block of mutated bytes the checksum that it should have, so that a fuzzer gets past it.
func resealed(content []byte) []byte {
	if len(content) < preambleBytes {
		return content
	}
	b := bytes.Clone(content)
	copy(b, appendPreamble(nil))
	chain := binary.LittleEndian.Uint32(b[12:])
	for at := preambleBytes; at+blockHeaderBytes <= len(b); {
		end := at + blockHeaderBytes + int(binary.LittleEndian.Uint32(b[at+4:]))
		if end > len(b) || end < at {
			binary.LittleEndian.PutUint32(b[at+4:], uint32(len(b)-at-blockHeaderBytes))
			end = len(b)
		}
		chain = crc32.Update(chain, castagnoli, b[at+4:end])
		binary.LittleEndian.PutUint32(b[at:], chain)
		at = end
	}
	return b
}
