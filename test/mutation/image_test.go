package mutation

const (
	images      = "statemachine/image"
	checkpoints = "statemachine/checkpoint"
	noImage     = "the image maps a file of the system"
)

var imageMutants = []mutant{
	{name: "image-head-apart", rule: "the applied index of the image is written by a transaction of its own", unseen: noImage,
		tests: []unit{{images, "TestACommitIsOneTransaction"}},
		patches: []patch{{"statemachine/image/write.go", "\t\treturn writeHead(tx, &h)\n\t})\n",
			"\t\tif mutant.On(\"image-head-apart\") {\n\t\t\treturn nil\n\t\t}\n\t\treturn writeHead(tx, &h)\n\t})\n\tif err == nil && mutant.On(\"image-head-apart\") {\n\t\terr = db.Update(func(tx *bbolt.Tx) error { return writeHead(tx, &h) })\n\t}\n"}}},
	{name: "image-rows-unchecked", rule: "the checksum of a row of the image is not checked", unseen: noImage, quick: true,
		tests: []unit{{images, "TestDamage|TestDamageOfEachPage|TestScrubFindsDamage|TestRowsAddUp"}},
		patches: []patch{{"statemachine/image/rows.go", `if sum != binary.BigEndian.Uint32(value[len(row):]) {`,
			`if sum != binary.BigEndian.Uint32(value[len(row):]) && !mutant.On("image-rows-unchecked") {`}}},
	{name: "image-rows-missing", rule: "the rows of the image are not added up", unseen: noImage,
		tests:   []unit{{images, "TestDamage|TestDamageOfEachPage|TestScrubFindsDamage|TestRowsAddUp"}},
		patches: []patch{{"statemachine/image/rows.go", "\tif t != want {\n", "\tif t != want && !mutant.On(\"image-rows-missing\") {\n"}}},
	{name: "image-of-another", rule: "the image of another frontend or cluster is used", unseen: noImage, tests: []unit{{images, "TestForeignAndMissing"}},
		patches: []patch{{"statemachine/image/load.go", `if !h.Identity.fits(identity) {`, `if !h.Identity.fits(identity) && !mutant.On("image-of-another") {`}}},
	{name: "image-skips-a-lease", rule: "the image is not told of leases that ended", unseen: noImage, tests: []unit{{images, "TestCrashAnywhere"}},
		patches: []patch{{"statemachine/image/write.go", "\t\tif row == nil {\n\t\t\treturn leases.Delete(key)\n\t\t}\n",
			"\t\tif row == nil && mutant.On(\"image-skips-a-lease\") {\n\t\t\tif old := leases.Get(key); old != nil {\n\t\t\t\th.Leases.add(key, old)\n\t\t\t}\n\t\t\treturn nil\n\t\t}\n\t\tif row == nil {\n\t\t\treturn leases.Delete(key)\n\t\t}\n"}}},
	{name: "image-eats-live", rule: "the image removes what its compact revision still shows", unseen: noImage, tests: []unit{{images, "TestCrashAnywhere"}},
		patches: []patch{{"statemachine/image/load.go", `if at.Main >= h.CompactRevision {`,
			`if at.Main >= mutant.Pick("image-eats-live", h.CompactRevision, h.CompactRevision+1) {`}}},
	{name: "image-after-a-gap", rule: "the image goes on after an entry that it was not told of", unseen: noImage, tests: []unit{{images, "TestEntriesOutOfOrder"}},
		patches: []patch{{"statemachine/image/image.go", `if a.Index != im.next {`, `if a.Index != im.next && !mutant.On("image-after-a-gap") {`}}},

	{name: "checkpoint-blocks-unchecked", rule: "the checksum of a block of a checkpoint is not checked", profile: "disks", within: 20,
		tests:   []unit{{checkpoints, "TestDamage"}},
		patches: []patch{{"statemachine/checkpoint/read.go", `d.chain != sum {`, `d.chain != sum && !mutant.On("checkpoint-blocks-unchecked") {`}}},
	{name: "checkpoint-records-missing", rule: "the records of a checkpoint are not counted", unseen: "none is lost but by damage, which the checksums find",
		tests: []unit{{checkpoints, "TestRecordsAreCounted"}},
		patches: []patch{{"statemachine/checkpoint/read.go", `if err == nil && (want != b.counts || records != 1) {`,
			`if err == nil && (want != b.counts || records != 1) && !mutant.On("checkpoint-records-missing") {`}}},
	{name: "checkpoint-of-rotten-memory", rule: "a version that is rotten in memory goes into a checkpoint", unseen: "memory does not rot in it",
		tests:   []unit{{checkpoints, "TestRottenMemory"}},
		patches: []patch{{"statemachine/checkpoint/write.go", `if !v.Intact() {`, `if !v.Intact() && !mutant.On("checkpoint-of-rotten-memory") {`}}},
	{name: "checkpoint-without-the-base", rule: "a checkpoint leaves keys out that were changed last before the compact revision", profile: "checkpoints",
		within: 10, tests: []unit{{checkpoints, "TestCanonical"}},
		patches: []patch{{"statemachine/checkpoint/write.go", `if compacted > 0 { // without`, `if compacted > 0 && !mutant.On("checkpoint-without-the-base") { // without`}}},
}
