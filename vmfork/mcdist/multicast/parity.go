package multicast

import (
	"sync"

	"github.com/klauspost/reedsolomon"
)

// Parity is Reed-Solomon's over bytes, with a Cauchy matrix: the parity symbol of index p is the sum over all i < k of
// symbol i times 1/(p XOR i). Every square part of such a matrix can be inverted, so any k different symbols of a batch
// are enough for the rest, and one parity symbol repairs a different loss at each receiver.
//
// The library's encoders invert a matrix of k by k for each new pattern of losses, which for 93 symbols takes longer
// than all the rest. Here only the few symbols that are missing are solved for; the library has the vector code.
var field = sync.OnceValue(func() *tables {
	t := new(tables)
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for c := range t.times {
		t.vector.GalMulSlice(byte(c), all, t.times[c][:])
		for x, product := range t.times[c] {
			if product == 1 {
				t.inverse[c] = byte(x)
			}
		}
	}
	return t
})

type tables struct {
	vector  reedsolomon.LowLevel
	times   [256][256]byte
	inverse [256]byte
}

// coefficient is the element of the matrix for a parity symbol and a symbol.
func (t *tables) coefficient(parity, symbol int) byte { return t.inverse[byte(parity)^byte(symbol)] }

// makeParity computes one parity symbol over the symbols of a batch, which lie one after another in content.
func makeParity(dst, content []byte, index int) {
	t := field()
	clear(dst)
	for i := 0; len(content) > 0; i++ {
		t.vector.GalMulSliceXor(t.coefficient(index, i), content[:len(dst)], dst)
		content = content[len(dst):]
	}
}

// solve computes the missing symbols of a batch in place. The symbols lie in content, each size bytes long; missing are
// those that are not there, and parity has as many parity symbols, whose indices are rows. They are used up.
func solve(content []byte, size int, missing []int, parity [][]byte, rows []int) {
	t := field()
	n := len(missing)
	symbol := func(i int) []byte { return content[i*size : (i+1)*size] }

	// What is known is taken out of each parity symbol, so that n equations with n unknowns remain.
	for i, m := 0, 0; i < len(content)/size; i++ {
		if m < n && missing[m] == i {
			m++
			continue
		}
		for r := range n {
			t.vector.GalMulSliceXor(t.coefficient(rows[r], i), symbol(i), parity[r])
		}
	}
	matrix := make([][]byte, n)
	for r := range matrix {
		matrix[r] = make([]byte, n)
		for c := range matrix[r] {
			matrix[r][c] = t.coefficient(rows[r], missing[c])
		}
	}
	// No pivot is ever zero: every leading square of a Cauchy matrix can be inverted.
	for p := range n {
		scale := t.inverse[matrix[p][p]]
		t.vector.GalMulSlice(scale, matrix[p], matrix[p])
		t.vector.GalMulSlice(scale, parity[p], parity[p])
		for r := range n {
			if factor := matrix[r][p]; r != p && factor != 0 {
				t.vector.GalMulSliceXor(factor, matrix[p], matrix[r])
				t.vector.GalMulSliceXor(factor, parity[p], parity[r])
			}
		}
	}
	for i, m := range missing {
		copy(symbol(m), parity[i])
	}
}
