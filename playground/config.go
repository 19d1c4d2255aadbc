package playground

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/logmirror/logmirror/frontend"
	"github.com/logmirror/logmirror/internal/disk"
	"github.com/logmirror/logmirror/internal/wan"
	"github.com/logmirror/logmirror/logservice"
)

// RoundTripMax is the longest round trip between two regions: two satellite hops.
const RoundTripMax = 2 * time.Second

// RegionsMax bounds the regions of a playground, and with them the voters of its log.
const RegionsMax = 7

// Config of a cluster. DataDir is needed, all else has a default.
type Config struct {
	// Regions are the regions' names, in the order of their frontends' ports. DefaultRegions if empty.
	Regions []string
	// RoundTrips between regions; pairs that are not named have none. DefaultRoundTrips if nil.
	RoundTrips map[wan.Pair]time.Duration
	// LeaderRegion is where leadership of the log is moved to and kept while it can be. Empty: wherever elections put it.
	LeaderRegion string
	// Listen is the address of the first region's frontend, on loopback; the others take the ports after it, or any
	// free port each for port 0. 127.0.0.1:0 if empty. Unused in memory.
	Listen string
	// DataDir holds everything that must survive; it is made if it is missing.
	DataDir string
	// InMemory makes all connections in memory, for a synctest bubble. Addresses are then names that only
	// Cluster.Network can dial.
	InMemory bool
	// FS is the disk of the log members; nil is the real one. The frontends use the real one in any case.
	FS disk.FS
	// Publication is the rule by which members learn what is committed.
	Publication logservice.Publication
	// WatchProgressInterval is how often an idle watch that asked for it is told of progress; 0 is the frontend's default.
	WatchProgressInterval time.Duration
	// Clock counts the time since some fixed moment, asleep or awake; nil is the system's boot time. In a bubble it must
	// be one of the bubble.
	Clock func() time.Duration
	// ProcessClock, where it is given, returns the clock of one process by its name, as Clock is: so that clocks can drift
	// apart and jump. A log member counts the log's time by its own.
	ProcessClock func(name string) func() time.Duration
	// Member and Frontend, where they are given, may change what a process is started with: limits, mostly. Names, places
	// and connections are the cluster's.
	Member   func(*logservice.Config)
	Frontend func(*frontend.Config)
	// Seed decides which packets are lost where links lose any.
	Seed uint64
	// Logger takes what the parts have to say; nil discards it.
	Logger *slog.Logger
}

// DefaultRegions returns the regions that are used when none are named.
func DefaultRegions() []string { return []string{"us", "eu", "ap"} }

// DefaultRoundTrips returns the round trips between the default regions.
func DefaultRoundTrips() map[wan.Pair]time.Duration {
	return map[wan.Pair]time.Duration{
		{A: "us", B: "eu"}: 80 * time.Millisecond,
		{A: "us", B: "ap"}: 150 * time.Millisecond,
		{A: "eu", B: "ap"}: 100 * time.Millisecond,
	}
}

func (c Config) withDefaults() (Config, error) {
	if len(c.Regions) == 0 {
		c.Regions = DefaultRegions()
	}
	if c.RoundTrips == nil {
		c.RoundTrips = DefaultRoundTrips()
	}
	if c.Listen == "" {
		c.Listen = "127.0.0.1:0"
	}
	if c.FS == nil {
		c.FS = disk.OS()
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, c.validate()
}

func (c Config) validate() error {
	if c.DataDir == "" {
		return errors.New("playground: no data directory given")
	}
	if err := validateRegions(c.Regions); err != nil {
		return err
	}
	if c.LeaderRegion != "" && !slices.Contains(c.Regions, c.LeaderRegion) {
		return fmt.Errorf("leader region %q is none of the regions %s", c.LeaderRegion, strings.Join(c.Regions, ","))
	}
	for pair, roundTrip := range c.RoundTrips {
		if roundTrip < 0 || roundTrip > RoundTripMax {
			return fmt.Errorf("round trip %s-%s=%v must be between 0 and %v", pair.A, pair.B, roundTrip, RoundTripMax)
		}
	}
	if c.InMemory {
		return nil
	}
	_, _, err := splitListen(c.Listen, len(c.Regions))
	return err
}

// splitListen checks that count listeners fit from the port on.
func splitListen(listen string, count int) (host string, port int, err error) {
	host, portText, err := net.SplitHostPort(listen)
	if err != nil {
		return "", 0, fmt.Errorf("listen address %q is not host:port", listen)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "", 0, fmt.Errorf("listen address %q is not on loopback: a playground has no authentication", listen)
	}
	number, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("listen address %q: port %q is not a number from 0 to 65535", listen, portText)
	}
	if number != 0 && int(number)+count-1 > 65535 {
		return "", 0, fmt.Errorf("listen address %q: %d regions need that many ports from there on", listen, count)
	}
	return host, int(number), nil
}

func validateRegions(regions []string) error {
	if len(regions) > RegionsMax {
		return fmt.Errorf("%d regions; a playground has at most %d", len(regions), RegionsMax)
	}
	for i, name := range regions {
		if !validRegionName(name) {
			return fmt.Errorf("region name %q: use 1 to 32 letters, digits and inner dashes", name)
		}
		if slices.Contains(regions[:i], name) {
			return fmt.Errorf("region %q is named twice", name)
		}
	}
	return nil
}

func validRegionName(name string) bool {
	if name == "" || len(name) > 32 || name[0] == '-' || name[len(name)-1] == '-' {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
}

// ParseRegions reads region names separated by commas.
func ParseRegions(text string) ([]string, error) {
	regions := strings.Split(text, ",")
	for i := range regions {
		regions[i] = strings.TrimSpace(regions[i])
	}
	return regions, validateRegions(regions)
}

// ParseRoundTrips reads round trips between the given regions, as us-eu=80ms,us-ap=150ms. Pairs that it does not name
// take their default, which is none for regions that are not among DefaultRegions. A pair of DefaultRegions that the
// cluster lacks is passed over, so that what is said of all of them also serves a cluster of some.
func ParseRoundTrips(text string, regions []string) (map[wan.Pair]time.Duration, error) {
	roundTrips := make(map[wan.Pair]time.Duration)
	for pair, roundTrip := range DefaultRoundTrips() {
		if slices.Contains(regions, pair.A) && slices.Contains(regions, pair.B) {
			roundTrips[ordered(pair)] = roundTrip
		}
	}
	named := make(map[wan.Pair]bool)
	for item := range strings.SplitSeq(text, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		names, value, ok := strings.Cut(item, "=")
		if !ok {
			return nil, fmt.Errorf("round trip %q: want REGION-REGION=DURATION, such as us-eu=80ms", item)
		}
		pair, err := parsePair(names, regions)
		if _, defaultErr := parsePair(names, DefaultRegions()); err != nil && defaultErr != nil {
			return nil, fmt.Errorf("round trip %q: %w", item, err)
		}
		lacking := err != nil
		roundTrip, err := time.ParseDuration(value)
		if err != nil {
			return nil, fmt.Errorf("round trip %q: %q is no duration, such as 80ms", item, value)
		}
		if roundTrip < 0 || roundTrip > RoundTripMax {
			return nil, fmt.Errorf("round trip %q must be between 0 and %v", item, RoundTripMax)
		}
		if lacking {
			continue
		}
		if named[pair] {
			return nil, fmt.Errorf("round trip %q: the pair is named twice", item)
		}
		named[pair] = true
		roundTrips[pair] = roundTrip
	}
	return roundTrips, nil
}

// parsePair splits names at the dash that leaves two known regions: names may hold dashes themselves.
func parsePair(names string, regions []string) (pair wan.Pair, err error) {
	found := 0
	for i := range names {
		if names[i] != '-' {
			continue
		}
		a, b := names[:i], names[i+1:]
		if slices.Contains(regions, a) && slices.Contains(regions, b) && a != b {
			pair, found = ordered(wan.Pair{A: a, B: b}), found+1
		}
	}
	switch found {
	case 0:
		return pair, fmt.Errorf("%q is no pair of two of the regions %s", names, strings.Join(regions, ","))
	case 1:
		return pair, nil
	default:
		return pair, fmt.Errorf("%q can be read as more than one pair of regions", names)
	}
}

func ordered(p wan.Pair) wan.Pair {
	if p.A > p.B {
		p.A, p.B = p.B, p.A
	}
	return p
}
