package programs

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	kvv1 "github.com/logmirror/logmirror/api/proto/logmirror/kv/v1"
	"github.com/logmirror/logmirror/client"
	"github.com/logmirror/logmirror/playground"
)

var update = flag.Bool("update-tutorials", false, "write the programs into the pages of docs/tutorials")

// shown is a program in a page: a line that names its directory, and a block of Go.
var shown = regexp.MustCompile("(?s)<!-- programs/([a-z-]+) -->\n```go\n(.*?)```\n")

func TestPagesShowThePrograms(t *testing.T) {
	pages, err := filepath.Glob("../*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	missing := map[string]bool{}
	sources, err := filepath.Glob("*/main.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, source := range sources {
		missing[filepath.Dir(source)] = true
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		current := shown.ReplaceAllStringFunc(string(text), func(block string) string {
			name := shown.FindStringSubmatch(block)[1]
			source, err := os.ReadFile(filepath.Join(name, "main.go"))
			if err != nil {
				t.Errorf("%s: %v", page, err)
			}
			delete(missing, name)
			return "<!-- programs/" + name + " -->\n```go\n" + string(source) + "```\n"
		})
		if strings.Count(string(text), "```go") != len(shown.FindAllString(string(text), -1)) {
			t.Errorf("%s has Go that is no program of this directory: nobody has compiled it", page)
		}
		if current == string(text) {
			continue
		}
		if !*update {
			t.Errorf("%s does not show its programs as they are; write them with -update-tutorials", page)
		} else if err := os.WriteFile(page, []byte(current), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name := range missing {
		t.Errorf("no page shows %s", name)
	}
}

// cluster is one of three regions, and the programs.
type cluster struct {
	t *testing.T
	// endpoints are those of us, eu and ap.
	endpoints map[string]string
	binaries  string
}

func TestPrograms(t *testing.T) {
	binaries := t.TempDir()
	if output, err := exec.Command("go", "build", "-o", binaries+string(filepath.Separator), "./...").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, output)
	}
	running, err := playground.Start(playground.Config{DataDir: t.TempDir(), LeaderRegion: "us", Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := running.Stop(ctx); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	select {
	case <-running.Ready():
	case <-running.Done():
		t.Fatal(running.Err())
	case <-time.After(time.Minute):
		t.Fatal("the cluster does not get ready")
	}
	c := &cluster{t: t, binaries: binaries, endpoints: map[string]string{}}
	for _, region := range running.Info().Regions {
		c.endpoints[region.Name] = region.Frontend
	}
	tests := map[string]func(c *cluster){
		"discovery": discovery, "configuration": configuration, "election": election, "election-etcd": electionEtcd,
		"lock": lock, "lock-etcd": lockEtcd, "ids": ids,
	}
	if sources, err := filepath.Glob("*/main.go"); err != nil || len(sources) != len(tests) {
		t.Errorf("%d programs, of which %d are run: %v", len(sources), len(tests), err)
	}
	for name, test := range tests {
		if !t.Run(name, func(t *testing.T) {
			test(&cluster{t: t, binaries: c.binaries, endpoints: c.endpoints})
		}) {
			return
		}
	}
}

// process is one program that runs.
type process struct {
	t       *testing.T
	command *exec.Cmd
	lines   chan string
	errors  bytes.Buffer
}

// start runs a program at a region.
func (c *cluster) start(program, region string, arguments ...string) *process {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Minute)
	p := &process{t: c.t, lines: make(chan string, 1000)}
	p.command = exec.CommandContext(ctx, filepath.Join(c.binaries, program), append([]string{c.endpoints[region]}, arguments...)...)
	p.command.Stderr = &p.errors
	out, err := p.command.StdoutPipe()
	if err == nil {
		err = p.command.Start()
	}
	if err != nil {
		c.t.Fatal(err)
	}
	go func() {
		defer close(p.lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			p.lines <- scanner.Text()
		}
	}()
	c.t.Cleanup(func() {
		cancel()
		_ = p.command.Wait() // it was waited for, or killed just now
	})
	return p
}

// says waits for a line with this text, past others.
func (p *process) says(text string) {
	p.t.Helper()
	var said []string
	for {
		select {
		case line, more := <-p.lines:
			if !more {
				p.t.Fatalf("%s does not say %q, but %q, and ends: %s", p.command.Path, text, said, p.errors.String())
			}
			if strings.Contains(line, text) {
				return
			}
			said = append(said, line)
		case <-time.After(time.Minute):
			p.t.Fatalf("%s does not say %q, but %q", p.command.Path, text, said)
		}
	}
}

// ends waits until the program ends well, by itself or interrupted.
func (p *process) ends(interrupted bool) {
	p.t.Helper()
	if interrupted {
		if err := p.command.Process.Signal(os.Interrupt); err != nil {
			p.t.Fatal(err)
		}
	}
	for range p.lines { // until it ends
	}
	if err := p.command.Wait(); err != nil {
		p.t.Fatalf("%s: %v: %s", p.command.Path, err, p.errors.String())
	}
}

func discovery(c *cluster) {
	us := c.start("discovery", "us", "service/pay/us-1", "10.0.0.7:80")
	us.says("map[service/pay/us-1:10.0.0.7:80]")
	eu := c.start("discovery", "eu", "service/pay/eu-1", "10.1.0.7:80")
	us.says("map[service/pay/eu-1:10.1.0.7:80 service/pay/us-1:10.0.0.7:80]")
	eu.says("map[service/pay/eu-1:10.1.0.7:80 service/pay/us-1:10.0.0.7:80]")
	us.ends(true)
	eu.says("map[service/pay/eu-1:10.1.0.7:80]")
	eu.ends(true)
}

// Several double one number at once: none is lost.
func configuration(c *cluster) {
	eu, err := client.New(client.Config{Endpoints: []string{c.endpoints["eu"]}})
	if err != nil {
		c.t.Fatal(err)
	}
	defer eu.Close()
	if err := eu.Once(c.t.Context(), func(ctx context.Context, id string) error {
		_, err := eu.Put(ctx, &kvv1.PutRequest{Key: []byte("config/limit"), Value: []byte("100"), Options: &kvv1.WriteOptions{RequestId: id}})
		return err
	}); err != nil {
		c.t.Fatal(err)
	}
	var all []*process
	for _, region := range []string{"us", "eu", "ap"} {
		all = append(all, c.start("configuration", region, "config/limit"))
	}
	highest := 0
	for _, p := range all {
		for line := range p.lines {
			if strings.Contains(line, "config/limit is 800 ") {
				highest++
			}
		}
		p.ends(false)
	}
	if highest != 1 {
		c.t.Errorf("%d of three came last, and doubled 400", highest)
	}
}

func election(c *cluster) {
	us := c.start("election", "us", "leader", "us")
	us.says("us leads since revision")
	eu := c.start("election", "eu", "leader", "eu")
	eu.says("eu waits for us")
	us.ends(true)
	eu.says("eu leads since revision")
	eu.ends(true)
}

func electionEtcd(c *cluster) {
	us := c.start("election-etcd", "us", "/election", "us")
	us.says("us leads since revision")
	us.says("reported: true")
	eu := c.start("election-etcd", "eu", "/election", "eu")
	us.ends(true)
	eu.says("eu leads since revision")
	eu.says("reported: true")
	eu.ends(true)
}

func lock(c *cluster) {
	p := c.start("lock", "ap")
	p.says("written: first")
	p.says("refused: second")
	p.ends(false)
}

func lockEtcd(c *cluster) {
	p := c.start("lock-etcd", "ap")
	p.says("written: first")
	p.says("refused: second")
	p.ends(false)
}

func ids(c *cluster) {
	p := c.start("ids", "eu")
	seen := map[string]bool{}
	last := ""
	for line := range p.lines {
		if seen[line] {
			c.t.Errorf("%s is given twice", line)
		}
		seen[line] = true
		last = line
	}
	p.ends(false)
	if !seen["orders 1"] || !seen["orders 3"] || !seen["invoices 3"] || len(seen) != 10 || last != "10000 more" {
		c.t.Errorf("%v", seen)
	}
}
