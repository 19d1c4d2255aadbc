package keyspace

import "testing"

// What is summed up with each write is what a Summer finds in the keys, whatever the write was.
func TestSumFollowsEachWrite(t *testing.T) {
	s := New(Options{})
	main := int64(0)
	step := func(name string, write func()) {
		t.Helper()
		main++
		write()
		s.Publish(uint64(main), main)
		summer := s.NewSummer()
		defer summer.Close()
		for done := false; !done; {
			var err error
			if done, err = summer.Sum(1); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	put := func(key, value string) func() {
		return func() { s.Put([]byte(key), []byte(value), 0, main, 0) }
	}
	step("put", put("a", "1"))
	step("another", put("b", "1"))
	step("overwrite", put("a", "2"))
	step("delete", func() { s.Delete([]byte("a"), main, 0) })
	step("put again", put("a", "3"))
	step("delete the last", func() {
		s.Delete([]byte("a"), main, 0)
		s.Delete([]byte("b"), main, 1)
	})
}
