package client

import (
	"iter"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
)

// IDs yields the ids of an answer, in ascending order.
func IDs(answer *kvv1.GenerateResponse) iter.Seq[int64] {
	return func(yield func(int64) bool) {
		for _, block := range answer.GetBlocks() {
			for i := range block.GetCount() {
				if !yield(block.GetFirst() + i) {
					return
				}
			}
		}
	}
}
