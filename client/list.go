package client

import (
	"context"
	"iter"

	"google.golang.org/protobuf/proto"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
)

// PrefixEnd returns the end of the range of all keys that begin with a prefix, for range_end of a request.
func PrefixEnd(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return []byte{0} // no end
}

// Pages yields a listing page by page, all of them of one revision. An error is final.
func (c *Client) Pages(ctx context.Context, request *kvv1.ListRequest) iter.Seq2[*kvv1.ListResponse, error] {
	return func(yield func(*kvv1.ListResponse, error) bool) {
		next := proto.CloneOf(request)
		for {
			page, err := c.List(ctx, next)
			if err != nil {
				yield(nil, err)
				return
			}
			next.PageToken = page.GetNextPageToken()
			if !yield(page, nil) || next.PageToken == "" {
				return
			}
		}
	}
}
