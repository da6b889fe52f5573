package cache

import (
	"crypto/sha256"
	"encoding/binary"
)

// Key names an answer. Requests with the same key get the same bytes. The zero
// Key names nothing: such an answer is neither shared nor kept.
type Key [sha256.Size]byte

// KeyOf hashes fields. Each is preceded by its length, so that moving a byte
// from one field to the next changes the key.
func KeyOf(fields ...[]byte) Key {
	h := sha256.New()
	var length [8]byte
	for _, f := range fields {
		binary.BigEndian.PutUint64(length[:], uint64(len(f)))
		h.Write(length[:])
		h.Write(f)
	}
	var k Key
	h.Sum(k[:0])
	return k
}
