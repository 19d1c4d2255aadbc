package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/logmirror/logmirror/internal/tlsfiles"
)

const introduction = `# A tour of three regions

Printed by "make demo-tour": the commands, and what they answered. "us", "eu" and "ap" stand for bin/kvctl with --endpoints of
that region's frontend, --resolve of all of them and the certificate of an application, "wan" for bin/wanlink with that of an
operator, which steers the links between the regions. Times are those of one run, with the start of each command in them.`

// Round trips between the regions, as compose.yaml sets them.
const (
	roundTripUsEu = 80 * time.Millisecond
	roundTripUsAp = 150 * time.Millisecond
	roundTripEuAp = 100 * time.Millisecond
)

var steps = []struct {
	title string
	walk  func(t *tour)
}{
	{"Who is there", whoIsThere},
	{"Everybody shows a certificate, and what it is for counts", certificates},
	{"The only way between regions is the WAN container", noOtherWay},
	{"Write in us, read in ap", writeAndRead},
	{"Two regions want the same key", compareAndSwap},
	{"One order of events, watched in ap", watchAcrossRegions},
	{"A lease moves to the region that renews it", leaseHandover},
	{"Cut ap off", cutOff},
	{"Heal it", heal},
	{"A link that loses packets", lossyLink},
	{"The leader speaks and nobody hears it", oneWayCut},
	{"Kill the leader of the log", killLeader},
	{"No majority", noMajority},
	{"The member comes back", comeBack},
	{"All regions are equal", digestsEqual},
}

func whoIsThere(t *tour) {
	t.say("Each region has a log member and a frontend. The log's leader is kept in us, as compose.yaml says (--leader-policy).")
	t.until(0, "leader log-us", "us", "status")
	t.say("A frontend tells where the others are. With --region kvctl asks one that it reaches for those of another region. Their\n" +
		"addresses are names in the networks of the containers; --resolve says where they are found from here ('demo up' prints it):")
	t.shows(0, "answered   frontend-ap in ap", slices.Concat([]string{kvctl, "--endpoints", t.endpoints["us"]}, t.identity("app"),
		[]string{"--resolve", t.resolve(), "--region", "ap", "status"})...)
}

func certificates(t *tour) {
	t.say("Every listener speaks mutual TLS. Without a certificate nobody is heard:")
	t.shows(5, "certificate required", kvctl, "--endpoints", t.endpoints["us"], "--cacert", t.file("authority.pem"), "get", "greeting")
	t.say("A certificate tells the role of its holder among its subject alternative names. A frontend's appends to the log, and\n" +
		"does not move its leadership; an application's does not steer the links:")
	t.shows(1, "is for operators, not for frontend frontend-us", "docker", "exec", "logmirror-frontend-us", "/kvctl",
		"--endpoints=frontend-us:2379", "log", "transfer", "log-eu")
	line := append([]string{wanlink, "cut", "ap", "--control", t.control}, t.identity("app")...)
	t.shows(1, "operators only", line...)
}

var containers = []string{"log-us", "frontend-us", "log-eu", "frontend-eu", "log-ap", "frontend-ap"}

func noOtherWay(t *tour) {
	t.say("Each container of a region is in that region's network and in no other, and these networks lead nowhere:")
	const networks = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}"
	for _, name := range containers {
		_, region, _ := strings.Cut(name, "-")
		a := t.shows(0, "logmirror_"+region, "docker", "inspect", "-f", networks, "logmirror-"+name)
		if t.err == nil && len(strings.Fields(a.text)) != 1 {
			t.fail("%s is in more than one network: %s", name, a.text)
		}
	}
	t.shows(0, "true\ntrue\ntrue", "docker", "network", "inspect", "-f", "{{.Internal}}", "logmirror_us", "logmirror_eu", "logmirror_ap")
	const address = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
	own := strings.TrimSpace(t.do("docker", "inspect", "-f", address, "logmirror-log-eu").text)
	t.say("So from us the member in eu is out of reach at its own address, and its name leads to the WAN container:")
	t.shows(1, "", "docker", "exec", "logmirror-log-us", "/wanlink", "probe", own+":2480")
	a := t.shows(0, "log-eu:2480 is reached at ", "docker", "exec", "logmirror-log-us", "/wanlink", "probe", "log-eu:2480")
	_, at, _ := strings.Cut(strings.TrimSpace(a.text), "reached at ")
	host, _, _ := strings.Cut(at, ":")
	wan := t.shows(0, "", "docker", "inspect", "-f", address, "logmirror-wan")
	if t.err == nil && !strings.Contains(" "+strings.TrimSpace(wan.text)+" ", " "+host+" ") {
		t.fail("log-eu is reached at %s from us, which is not the WAN container: %s", host, wan.text)
	}
	t.shows(0, "us    ap  75 ms", "wan", "status")
}

func writeAndRead(t *tour) {
	t.say("A write is answered once it is durable on a majority of the log and applied in the region that it went through:")
	t.atLeast(t.shows(0, "OK, revision", "us", "put", "greeting", "hello"), 80*time.Millisecond, "a put in us")
	t.say("A linearizable read in ap sees it, for one round trip to the nearest majority; a serializable one costs none:")
	t.atLeast(t.shows(0, "hello", "ap", "get", "greeting"), roundTripEuAp, "a linearizable read in ap")
	t.shows(0, "hello", "ap", "get", "greeting", "--consistency", "serializable")
	t.say("A write in ap takes the way to the leader in us and back:")
	t.atLeast(t.shows(0, "OK, revision", "ap", "put", "greeting", "hello from ap"), roundTripUsAp, "a put in ap")
	t.shows(0, "hello from ap", "us", "get", "greeting")
}

func compareAndSwap(t *tour) {
	t.say("Both ask at the same moment for a key that nobody has. The order of the log decides: one of them gets it.")
	key := "leader/" + unique()
	answers := t.atOnce([]string{"us", "cas", key, "--expect-absent", "--put", "us"}, []string{"eu", "cas", key, "--expect-absent", "--put", "eu"})
	if t.err != nil {
		return
	}
	winner := "us"
	if answers[1].code == 0 {
		winner = "eu"
	}
	if answers[0].code+answers[1].code != 4 {
		t.fail("exit codes %d and %d: one must be 0 and the other 4", answers[0].code, answers[1].code)
	}
	t.shows(0, winner+"\n", "ap", "get", key)
}

// unique is a part of a key that no earlier tour has used.
func unique() string { return strconv.FormatInt(time.Now().UnixNano(), 36) }

func watchAcrossRegions(t *tour) {
	t.say("A watch in ap, open while us, eu and ap write. Every region sees the same changes in the same order:")
	prefix := "news/" + unique() + "/"
	wait := t.background("ap", "watch", "--prefix", prefix, "--rev", strconv.FormatInt(t.revision()+1, 10), "--count", "3")
	for _, region := range []string{"us", "eu", "ap"} {
		t.shows(0, "OK", region, "put", prefix+region, "from "+region)
	}
	a := wait(0, "from us")
	if t.err == nil && !regexp.MustCompile(`(?s)from us.*from eu.*from ap`).MatchString(a.text) {
		t.fail("the watch tells another order than that of the writes: %s", a.text)
	}
}

// revision is the present one.
func (t *tour) revision() int64 {
	a := t.do("us", "get", "greeting", "-o", "json")
	var found struct{ Header header }
	if err := json.Unmarshal([]byte(a.text), &found); t.err == nil && err != nil {
		t.fail("the present revision: %w: %s", err, a.text)
	}
	return found.Header.Revision
}

type header struct {
	Revision        int64 `json:"revision"`
	AgeMicroseconds int64 `json:"age_microseconds"`
}

func leaseHandover(t *tour) {
	t.say("A lease is kept by the frontend that its client renews it through: here in us, where it was granted.")
	key := "session/" + unique()
	granted := t.shows(0, "granted, 60 s", "us", "lease", "grant", "60")
	if t.err != nil {
		return
	}
	lease := strings.Fields(granted.text)[1]
	t.shows(0, "OK", "eu", "put", key, "me", "--lease", lease)
	t.shows(0, "frontend-us in us", "us", "lease", "list")
	t.say("Its client moves to ap and renews it there: one entry of the log, and from then on renewals are local to ap.")
	t.shows(0, "renewed, 60 s", "ap", "lease", "keep-alive", lease, "--once")
	t.until(0, "frontend-ap in ap", "us", "lease", "list")
	t.say("How long it has left only its owner knows: us asks ap.")
	t.shows(0, "s left of 60 s", "us", "lease", "ttl", lease)
	t.say("With the lease its keys go, in every region:")
	t.shows(0, "revoked", "us", "lease", "revoke", lease)
	t.shows(3, "no key", "ap", "get", key)
}

func cutOff(t *tour) {
	t.shows(0, "CUT", "wan", "cut", "ap")
	t.say("The other two are a majority and go on:")
	t.shows(0, "OK", "us", "put", "greeting", "while ap is away")
	t.shows(0, "while ap is away", "eu", "get", "greeting")
	t.say("In ap reads of its own state go on, and say how old that may be:")
	before := t.age("ap")
	t.shows(0, "hello from ap", "ap", "get", "greeting", "--consistency", "serializable", "--details")
	t.say("What needs the log fails, at once as soon as the frontend knows that the log is away, and says that it was not done. A\n" +
		"write that was under way before would end with exit code 6, not known, since it may still arrive.")
	t.until(5, "not applied", "ap", "put", "attempt", "from ap", "--timeout", "3s")
	t.until(5, "the log is unavailable", "ap", "get", "greeting", "--timeout", "3s")
	t.shows(0, "DEGRADED", "ap", "status", "--timeout", "3s")
	t.say("Its state grows older, and is still read:")
	t.shows(0, "hello from ap", "ap", "get", "greeting", "--consistency", "serializable", "--details")
	if after := t.age("ap"); t.err == nil && after <= before {
		t.fail("the age in ap was %v and is %v: it must grow while ap is cut off", before, after)
	}
}

// age is how old a region says that its state may be.
func (t *tour) age(region string) time.Duration {
	a := t.do(region, "get", "greeting", "--consistency", "serializable", "-o", "json")
	var found struct{ Header header }
	if err := json.Unmarshal([]byte(a.text), &found); t.err == nil && err != nil {
		t.fail("the age in %s: %w: %s", region, err, a.text)
	}
	return time.Duration(found.Header.AgeMicroseconds) * time.Microsecond
}

func heal(t *tour) {
	wait := t.background("ap", "watch", "greeting", "--rev", strconv.FormatInt(t.revision(), 10), "--count", "1")
	t.shows(0, "ok", "wan", "heal")
	took := t.until(0, "while ap is away", "ap", "get", "greeting", "--timeout", "3s")
	t.say(fmt.Sprintf("ap reads what it missed %.1f s after the links were healed, and a watch that was opened there before them is\n"+
		"told of it:", took.Seconds()))
	wait(0, "while ap is away")
	t.until(0, "OK", "ap", "put", "greeting", "ap is back", "--timeout", "3s")
}

// retransmission is what a lost packet adds at least: the sender waits before it sends it again, and that takes its way anew.
const retransmission = 200*time.Millisecond + roundTripUsEu

// lossyLink writes so often that a loss of 10 % cannot miss all of it: each write needs two packets of the link at least, and
// 0.9 to the power of 80 is a chance of one in 4,500.
func lossyLink(t *tour) {
	const writes = 40
	t.say("The link between us and eu works. Writes through eu take the way to the leader in us and back:")
	whole := t.again(writes, "OK", "eu", "put", "greeting", "over a good link")
	t.say("Now it loses every tenth packet, in both directions. As over TCP, what is lost is sent again 0.2 s and a round trip later,\n" +
		"and all that was sent after it on the same connection waits for it:")
	t.shows(0, "us    eu  40 ms  10 %", "wan", "loss", "us-eu", "10%")
	lossy := t.again(writes, "OK", "eu", "put", "greeting", "over a bad link")
	t.say(fmt.Sprintf("Every write is answered; the slowest took %.2f s, where it was %.2f s without loss.",
		lossy.slowest.Seconds(), whole.slowest.Seconds()))
	t.atLeast(answer{took: lossy.slowest}, retransmission, "the slowest of "+strconv.Itoa(writes)+" writes over a lossy link")
	t.say("ap does not use that link: its writes are decided by us and ap.")
	alone := t.again(writes/4, "OK", "ap", "put", "greeting", "beside the bad link")
	t.atLeast(answer{took: alone.fastest}, roundTripUsAp, "a put in ap")
	t.shows(0, "us    eu  40 ms  0 %", "wan", "loss", "us-eu", "0")
	t.shows(0, "beside the bad link", "eu", "get", "greeting")
}

var otherLeader = regexp.MustCompile(`leader log-(eu|ap)`)

func oneWayCut(t *tour) {
	t.say("The worse half of a cut: nothing that us sends arrives, while what the others send to us does.")
	t.shows(0, "us    eu  40 ms  0 %   CUT", "wan", "cut", "us-eu", "--one-way")
	t.shows(0, "eu    us  40 ms  0 %   ok", "wan", "cut", "us-ap", "--one-way")
	took := t.until(0, "OK", "eu", "put", "greeting", "us is not heard", "--timeout", "3s")
	t.say(fmt.Sprintf("eu and ap hear no leader and elect one of them; the first write in eu is answered %.1f s after the cut:", took.Seconds()))
	if a := t.shows(0, "", "eu", "status"); t.err == nil && !otherLeader.MatchString(a.text) {
		t.fail("eu writes, and its status tells no leader in eu or ap: %s", a.text)
	}
	t.say("The member in us leads no longer: a leader that gets no answers steps down by itself. What needs the log fails in us:")
	t.until(5, "not applied", "us", "put", "attempt", "from us", "--timeout", "3s")
	t.say("Reads of its own state go on, and grow older. What eu wrote is not in it, although the way into us is open: members send\n" +
		"on to those that answer only, and to open a connection takes both directions.")
	before := t.age("us")
	t.shows(0, "beside the bad link", "us", "get", "greeting", "--consistency", "serializable", "--details")
	t.shows(0, "DEGRADED", "us", "status", "--timeout", "3s")
	if after := t.age("us"); t.err == nil && after <= before {
		t.fail("the age in us was %v and is %v: it must grow while us is not heard", before, after)
	}
	t.shows(0, "ok", "wan", "heal")
	took = t.until(0, "us is not heard", "us", "get", "greeting", "--timeout", "3s")
	t.say(fmt.Sprintf("us reads what it missed %.1f s after the links were healed, and gets the leader back, because the policy wants it there:",
		took.Seconds()))
	t.until(0, "leader log-us", "us", "status")
}

func killLeader(t *tour) {
	t.shows(0, "logmirror-log-us", "docker", "kill", "logmirror-log-us")
	took := t.until(0, "OK", "us", "put", "greeting", "without log-us", "--timeout", "3s")
	t.say(fmt.Sprintf("The two that are left elected another leader; the first write in us is answered %.1f s after the kill. The frontend\n"+
		"in us has no member in its own region now, and tails one across the ocean:", took.Seconds()))
	t.until(0, "unreachable", "us", "status")
	t.shows(0, "without log-us", "ap", "get", "greeting", "--timeout", "3s")
}

func noMajority(t *tour) {
	t.say("With ap cut off as well, one member of three is left. Nothing is written any more, by anybody, and reads go on:")
	t.shows(0, "CUT", "wan", "cut", "ap")
	t.until(5, "not applied", "eu", "put", "attempt", "from eu", "--timeout", "3s")
	t.shows(0, "without log-us", "eu", "get", "greeting", "--consistency", "serializable", "--details")
	t.say("Healed, two of three are a majority again:")
	t.shows(0, "ok", "wan", "heal")
	took := t.until(0, "OK", "eu", "put", "greeting", "two of three", "--timeout", "3s")
	t.say(fmt.Sprintf("The first write in eu is answered %.1f s after the links were healed.", took.Seconds()))
}

func comeBack(t *tour) {
	t.shows(0, "logmirror-log-us", "docker", "start", "logmirror-log-us")
	t.say("It catches up, and leads again, because the policy wants the leader in us:")
	t.until(0, "leader log-us", "us", "status")
	for _, region := range []string{"us", "eu", "ap"} {
		t.until(0, "two of three", region, "get", "greeting", "--timeout", "3s")
	}
}

func digestsEqual(t *tour) {
	t.say("Mirrors sum up their state as they apply, and the log's leader compares the sums every five seconds; one that differed\n" +
		"would be an alarm in every status. There is none, and etcd's own client gets the same hash of all keys and all of their\n" +
		"history at the same revision from each region:")
	revision := t.revision()
	var hashes []uint32
	for _, region := range []string{"us", "eu", "ap"} {
		if a := t.do(region, "status"); strings.Contains(a.text, "ALARM") {
			t.fail("%s tells an alarm: %s", region, a.text)
		}
		hash := t.hash(region, revision)
		hashes = append(hashes, hash)
		t.say(fmt.Sprintf("    %s  HashKV at revision %d: %08x", region, revision, hash))
	}
	if t.err == nil && (hashes[0] != hashes[1] || hashes[1] != hashes[2]) {
		t.fail("the regions differ at revision %d: %x", revision, hashes)
	}
}

// hash asks a region's frontend by etcd's client, once it has the revision.
func (t *tour) hash(region string, revision int64) uint32 {
	if t.err != nil {
		return 0
	}
	t.do(region, "get", "greeting") // linearizable: the region has the revision then
	files := tlsfiles.Files{
		Certificate: filepath.Join(t.top, t.file("app.pem")), Key: filepath.Join(t.top, t.file("app-key.pem")),
		Authority: filepath.Join(t.top, t.file("authority.pem")),
	}
	config, err := files.ClientConfig(nil)
	if err != nil {
		t.fail("certificates of an application: %w", err)
		return 0
	}
	hash, err := hashKV(t.ctx, t.endpoints[region], config, revision)
	if err != nil {
		t.fail("HashKV in %s: %w", region, err)
	}
	return hash
}

func hashKV(ctx context.Context, endpoint string, config *tls.Config, revision int64) (uint32, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, TLS: config, Logger: zap.NewNop()})
	if err != nil {
		return 0, err
	}
	defer client.Close()
	answer, err := client.HashKV(ctx, endpoint, revision)
	if err != nil {
		return 0, err
	}
	return answer.Hash, nil
}
