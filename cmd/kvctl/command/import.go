package command

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/term"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
)

const (
	importLineBytesMax = 16 << 20
	// importInFlight is the number of puts under way; the place to resume from is kept once for so many.
	importInFlight = 64
	// importPatience bounds the wait for a cluster that is out of reach in the middle of an import.
	importPatience = time.Minute
)

const importHelp = `Load keys from a JSON Lines file or a directory tree.

A line of a file is {"key": "...", "value": "..."}; "key_base64" and "value_base64" take bytes that are not text.
The output of "kvctl list -o json" is such a file. Of a directory, each regular file is a key: --prefix and its path
within the directory.

How far an import came is kept in the user's cache directory: run the same command again to go on after an interruption.
A put that was under way then is made again.`

func newImport(o *options) *cobra.Command {
	var prefix string
	var restart bool
	c := &cobra.Command{
		Use:   "import FILE|DIR",
		Short: "Load keys from a JSON Lines file or a directory tree; resumes where it was interrupted",
		Long:  importHelp,
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			source, err := openImport(args[0], prefix)
			if err != nil {
				return exitError{exitUsage, err}
			}
			defer source.close()
			connection, err := o.connect(c.Context())
			if err != nil {
				return err
			}
			defer connection.Close()
			ctx, cancel := context.WithTimeout(c.Context(), o.timeout)
			answer, err := connection.Status(ctx, &kvv1.StatusRequest{})
			cancel()
			if err != nil {
				return err
			}
			progress, err := openProgress(args[0], prefix, answer.GetHeader().GetClusterId(), restart)
			if err != nil {
				return err
			}
			return o.importFrom(c.Context(), connection, source, progress)
		},
	}
	c.Flags().StringVar(&prefix, "prefix", "", "put this before every key")
	c.Flags().BoolVar(&restart, "restart", false, "begin again instead of going on where an earlier run stopped")
	return c
}

// importFrom puts the records in order, in groups: a group's puts run side by side, and the place to resume from moves
// on when all of them are done.
func (o *options) importFrom(ctx context.Context, connection *client.Client, source importSource, progress *importProgress) error {
	skipped := progress.done
	bar := o.progressBar(source.bytes())
	started := time.Now()
	for number := int64(0); ; {
		group := make([]importRecord, 0, importInFlight)
		var end error
		for len(group) < importInFlight {
			record, err := source.next()
			if err != nil {
				end = err
				break
			}
			if number++; number > skipped {
				group = append(group, record)
			}
			bar.Add64(record.bytes)
		}
		if end != nil && !errors.Is(end, io.EOF) {
			return exitError{exitUsage, end}
		}
		if err := o.putAll(ctx, connection, group); err != nil {
			bar.Exit()
			return fmt.Errorf("%w\n%d records are in; run the same command again to go on", err, progress.done)
		}
		if len(group) > 0 {
			if err := progress.advance(number); err != nil {
				return err
			}
		}
		if end != nil {
			bar.Finish()
			if err := progress.finish(); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return o.print(map[string]any{"imported": number - skipped, "skipped": min(skipped, number)}, func() {
				o.line("%d keys imported in %s", number-min(skipped, number), time.Since(started).Round(time.Millisecond))
				if skipped > 0 {
					o.line("%d were in from an earlier run", min(skipped, number))
				}
			})
		}
	}
}

func (o *options) progressBar(total int64) *progressbar.ProgressBar {
	visible := false
	if file, ok := o.err.(*os.File); ok {
		visible = term.IsTerminal(int(file.Fd()))
	}
	return progressbar.NewOptions64(total, progressbar.OptionSetWriter(o.err), progressbar.OptionSetVisibility(visible),
		progressbar.OptionShowBytes(true), progressbar.OptionSetDescription("import"), progressbar.OptionClearOnFinish(),
		progressbar.OptionThrottle(100*time.Millisecond))
}

func (o *options) putAll(ctx context.Context, connection *client.Client, group []importRecord) error {
	puts, ctx := errgroup.WithContext(ctx)
	for _, record := range group {
		puts.Go(func() error {
			give := time.Now().Add(importPatience)
			for {
				callCtx, cancel := context.WithTimeout(ctx, o.timeout)
				_, err := connection.Put(callCtx, &kvv1.PutRequest{Key: record.key, Value: record.value})
				cancel()
				// Putting the same value again is harmless, so an unknown outcome is as good as none.
				transient := status.Code(err) == codes.Unavailable || status.Code(err) == codes.ResourceExhausted ||
					status.Code(err) == codes.DeadlineExceeded
				if err == nil {
					return nil
				}
				if !transient || ctx.Err() != nil || time.Now().After(give) {
					return fmt.Errorf("key %s: %w", printable(record.key), err)
				}
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(200 * time.Millisecond):
				}
			}
		})
	}
	return puts.Wait()
}

// importRecord is one key to put; bytes is its share of the source's size.
type importRecord struct {
	key, value []byte
	bytes      int64
}

// importSource yields records in an order that is the same in every run; io.EOF ends them.
type importSource interface {
	next() (importRecord, error)
	bytes() int64
	close()
}

func openImport(path, prefix string) (importSource, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return openDirectory(path, prefix)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	scanner := bufio.NewScanner(file)
	scanner.Buffer(make([]byte, 64<<10), importLineBytesMax)
	return &lineSource{file: file, scanner: scanner, size: info.Size(), prefix: prefix}, nil
}

type lineSource struct {
	file    *os.File
	scanner *bufio.Scanner
	size    int64
	line    int
	prefix  string
}

func (s *lineSource) bytes() int64 { return s.size }
func (s *lineSource) close()       { s.file.Close() }

func (s *lineSource) next() (importRecord, error) {
	for s.scanner.Scan() {
		s.line++
		text := s.scanner.Bytes()
		if len(text) == 0 {
			continue
		}
		var kv keyValueJSON
		if err := json.Unmarshal(text, &kv); err != nil {
			return importRecord{}, fmt.Errorf("%s: line %d: %w", s.file.Name(), s.line, err)
		}
		record := importRecord{key: kv.KeyBase64, value: kv.ValueBase64, bytes: int64(len(text)) + 1}
		if kv.Key != nil {
			record.key = []byte(*kv.Key)
		}
		if kv.Value != nil {
			record.value = []byte(*kv.Value)
		}
		if len(record.key) == 0 {
			return importRecord{}, fmt.Errorf("%s: line %d: no key", s.file.Name(), s.line)
		}
		record.key = append([]byte(s.prefix), record.key...)
		return record, nil
	}
	if err := s.scanner.Err(); err != nil {
		return importRecord{}, fmt.Errorf("%s: after line %d: %w", s.file.Name(), s.line, err)
	}
	return importRecord{}, io.EOF
}

type directorySource struct {
	root, prefix string
	paths        []string // within root, in lexical order
	size         int64
}

func openDirectory(root, prefix string) (importSource, error) {
	s := &directorySource{root: root, prefix: prefix}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		within, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		s.paths = append(s.paths, within)
		s.size += info.Size()
		return nil
	})
	return s, err
}

func (s *directorySource) bytes() int64 { return s.size }
func (s *directorySource) close()       {}

func (s *directorySource) next() (importRecord, error) {
	if len(s.paths) == 0 {
		return importRecord{}, io.EOF
	}
	within := s.paths[0]
	s.paths = s.paths[1:]
	value, err := os.ReadFile(filepath.Join(s.root, within))
	if err != nil {
		return importRecord{}, err
	}
	return importRecord{key: []byte(s.prefix + filepath.ToSlash(within)), value: value, bytes: int64(len(value))}, nil
}

// importProgress keeps how many records of one source are in one cluster.
type importProgress struct {
	path string
	done int64
}

func openProgress(source, prefix string, clusterID uint64, restart bool) (*importProgress, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("no place to keep the progress: %w", err)
	}
	absolute, err := filepath.Abs(source)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(source)
	if err != nil {
		return nil, err
	}
	// A file that was changed since is another source.
	name := sha256.Sum256(fmt.Appendf(nil, "%016x\x00%s\x00%s\x00%d\x00%d", clusterID, absolute, prefix, info.Size(), info.ModTime().UnixNano()))
	directory := filepath.Join(cache, "logmirror", "import")
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return nil, err
	}
	p := &importProgress{path: filepath.Join(directory, hex.EncodeToString(name[:16]))}
	if restart {
		return p, nil
	}
	data, err := os.ReadFile(p.path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		_, err = fmt.Sscanf(string(data), "%d\n", &p.done)
	}
	if err != nil || p.done < 0 {
		p.done = 0 // a half-written file: begin again, which repeats puts and loses none
	}
	return p, nil
}

func (p *importProgress) advance(done int64) error {
	p.done = done
	temporary := p.path + ".new"
	if err := os.WriteFile(temporary, fmt.Appendf(nil, "%d\n", done), 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, p.path)
}

// finish forgets the record; one that stays behind makes a later import of the same file skip what is in.
func (p *importProgress) finish() error { return os.Remove(p.path) }
