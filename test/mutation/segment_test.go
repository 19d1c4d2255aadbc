package mutation

const segments = "logservice/segment"

var segmentMutants = []mutant{
	{name: "append-unsynced", rule: "a group counts as durable without a sync", profile: "disks", within: 10, quick: true,
		tests: []unit{{segments, "TestCrashAtEveryOperation|TestWriteCutAnywhere"}},
		patches: []patch{{"logservice/segment/append.go", "\tif err := s.file.Datasync(); err != nil {\n\t\treturn l.fail(err)\n\t}\n",
			"\tif mutant.On(\"append-unsynced\") {\n\t\t// left to the system\n\t} else if err := s.file.Datasync(); err != nil && !mutant.On(\"failed-sync-counts\") {\n\t\treturn l.fail(err)\n\t}\n"}}},
	{name: "failed-sync-counts", rule: "a group counts as durable though its sync failed", profile: "disks", within: 20,
		tests: []unit{{segments, "TestFailedWriteOrSyncIsFinal|TestFailureAnywhereIsFinalOrHarmless"}}},
	{name: "written-after-a-failure", rule: "the log takes more after a write that failed", profile: "disks", within: 20,
		tests: []unit{{segments, "TestFailedWriteOrSyncIsFinal|TestFailureAnywhereIsFinalOrHarmless"}},
		patches: []patch{{"logservice/segment/log.go", "\tif l.failure == nil {\n\t\tl.failure = fmt.Errorf",
			"\tif mutant.On(\"written-after-a-failure\") {\n\t\treturn err\n\t}\n\tif l.failure == nil {\n\t\tl.failure = fmt.Errorf"}}},
	{name: "header-unsynced", rule: "a segment gets its name before its header is synced", profile: "processes", within: 10,
		tests: []unit{{segments, "TestCrashAtEveryOperation"}},
		patches: []patch{{"logservice/segment/roll.go", "\tif err := spare.file.Datasync(); err != nil {\n\t\treturn nil, l.fail(errors.Join(err, spare.file.Close()))",
			"\tif mutant.On(\"header-unsynced\") {\n\t\treturn s, l.nameSegment(spare.name, s)\n\t}\n\tif err := spare.file.Datasync(); err != nil {\n\t\treturn nil, l.fail(errors.Join(err, spare.file.Close()))"}}},
	{name: "name-unsynced", rule: "a segment is written to before its name is durable", profile: "processes", within: 10,
		tests: []unit{{segments, "TestCrashAtEveryOperation"}},
		patches: []patch{{"logservice/segment/roll.go", "\terr := l.fs.Rename(l.path(name), s.path)\n\tif err == nil {\n",
			"\terr := l.fs.Rename(l.path(name), s.path)\n\tif err == nil && !mutant.On(\"name-unsynced\") {\n"}}},
	{name: "install-unsynced", rule: "an installed log gets its name before it is synced", profile: "checkpoints", within: 20,
		tests: []unit{{segments, "TestCrashAtEveryOperation"}},
		patches: []patch{{"logservice/segment/install.go", "\treturn s.file.Datasync()\n",
			"\tif mutant.On(\"install-unsynced\") {\n\t\treturn nil\n\t}\n\treturn s.file.Datasync()\n"}}},
	{name: "trim-unsynced", rule: "a segment is removed before the removal of the one before it is durable", unseen: "its disk loses names in their order",
		tests: []unit{{segments, "TestCrashAtEveryOperation"}},
		patches: []patch{{"logservice/segment/recycle.go", "\tif err == nil {\n\t\terr = l.fs.SyncDir(l.dir)\n\t}\n",
			"\tif err == nil && !mutant.On(\"trim-unsynced\") {\n\t\terr = l.fs.SyncDir(l.dir)\n\t}\n"}}},
	{name: "recovered-unsynced", rule: "a start believes a last frame that was never synced", profile: "processes", within: 20,
		tests: []unit{{segments, "TestRecoveredGroupIsDurable"}},
		patches: []patch{{"logservice/segment/open.go", "\tif err := l.syncTail(active); err != nil {",
			"\tif err := l.syncTail(active); err != nil && !mutant.On(\"recovered-unsynced\") {"},
			{"logservice/segment/open.go", "func (l *Log) syncTail(s *segmentFile) error {\n",
				"func (l *Log) syncTail(s *segmentFile) error {\n\tif mutant.On(\"recovered-unsynced\") {\n\t\treturn nil\n\t}\n"}}},
	{name: "recovered-not-rewritten", rule: "a start syncs the last frame without writing it again", unseen: "its disk does not forget what a failed sync left in memory",
		tests: []unit{{segments, "TestRecoveredGroupIsDurable"}},
		patches: []patch{{"logservice/segment/open.go", `if length := int64(s.tail.length); length > 0 {`,
			`if length := int64(s.tail.length); length > 0 && !mutant.On("recovered-not-rewritten") {`}}},
	{name: "payload-unchecked", rule: "a frame whose payload is torn is taken", profile: "disks", within: 10,
		tests: []unit{{segments, "TestWriteCutAnywhere|TestEveryDamagedByteIsFound|TestDamageIsFoundWhenRead"}},
		patches: []patch{{"logservice/segment/frame.go", `if crc32.Checksum(payload, castagnoli) != h.payloadCRC {`,
			`if crc32.Checksum(payload, castagnoli) != h.payloadCRC && !mutant.On("payload-unchecked") {`}}},
	{name: "header-unchecked", rule: "a frame's header is taken without its checksum", profile: "disks", within: 10,
		tests: []unit{{segments, "TestEveryDamagedByteIsFound|TestDataThatLooksLikeFrames|TestWriteCutAnywhere"}},
		patches: []patch{{"logservice/segment/frame.go", `le.Uint32(b[84:]) != 0 || le.Uint32(b[88:]) != headerCRC(b, salt, offset) {`,
			`le.Uint32(b[84:]) != 0 || le.Uint32(b[88:]) != headerCRC(b, salt, offset) && !mutant.On("header-unchecked") {`}}},
	{name: "chain-unchecked", rule: "a frame need not follow the one before it", unseen: "rot does not make good frames",
		tests: []unit{{segments, "TestFrameOfAnotherHistory|TestFrameLostBeforeTheTail"}},
		patches: []patch{{"logservice/segment/scan.go", `if f.previousCRC != t.crc || f.previousLength != t.length {`,
			`if (f.previousCRC != t.crc || f.previousLength != t.length) && !mutant.On("chain-unchecked") {`},
			{"logservice/segment/open.go", `if f.first == l.last.index+1 && (f.previousTerm`, `if f.first == l.last.index+1 && !mutant.On("chain-unchecked") && (f.previousTerm`}}},
	{name: "rot-counts-as-torn", rule: "rot in the last frame counts as a write that was never synced", profile: "disks", within: 30,
		tests: []unit{{segments, "TestEveryDamagedByteIsFound|TestZeroDataIsNotTakenForALostSector"}},
		patches: []patch{{"logservice/segment/scan.go", `if b[len(b)-1] != 0 && countZeroSectors(b, offset) <= f.zeroSectors {`,
			`if b[len(b)-1] != 0 && countZeroSectors(b, offset) <= f.zeroSectors && !mutant.On("rot-counts-as-torn") {`},
			{"logservice/segment/scan.go", "\treturn false, damaged(\"yet its sectors were written\")\n",
				"\tif mutant.On(\"rot-counts-as-torn\") {\n\t\treturn true, nil\n\t}\n\treturn false, damaged(\"yet its sectors were written\")\n"}}},
	{name: "follower-overlooked", rule: "frames behind a bad one are overlooked", profile: "disks", within: 20,
		tests:   []unit{{segments, "TestFrameLostBeforeTheTail|TestEveryDamagedByteIsFound"}},
		patches: []patch{{"logservice/segment/scan.go", "\tcase follower >= 0:\n", "\tcase follower >= 0 && !mutant.On(\"follower-overlooked\"):\n"}}},
	{name: "stamp-unchecked", rule: "sectors that a file's earlier segment has left are read", profile: "checkpoints", within: 30,
		tests: []unit{{segments, "TestSectorsOfAnotherSegmentReadAsZeros|TestTrimmedFilesAreUsedAgain"}},
		patches: []patch{{"logservice/segment/sectors.go", `return found == 0 || segment != s.segment && found == stamp(segment, sector)`,
			`return found == 0 || segment != s.segment && found == stamp(segment, sector) && !mutant.On("stamp-unchecked")`}}},
	{name: "recycled-while-read", rule: "a trimmed file is used again while somebody reads it", unseen: "its reads end at once",
		tests:   []unit{{segments, "TestFileThatIsReadIsNotUsedAgain"}},
		patches: []patch{{"logservice/segment/recycle.go", `if s.references.Add(-1) > 0 {`, `if s.references.Add(-1) > 0 && !mutant.On("recycled-while-read") {`}}},
	{name: "recycled-after-a-restart", rule: "files left by an earlier life are used again", unseen: "a header is seldom left in one",
		tests: []unit{{segments, "TestCrashAtEveryOperation|TestKillAtEveryOperation|TestTrimmedFilesAreUsedAgain"}},
		patches: []patch{{"logservice/segment/open.go", `if name != spareName && name != temporaryName && !isRecycledName(name) {`,
			`if name != spareName && name != temporaryName && (!isRecycledName(name) || mutant.On("recycled-after-a-restart")) {`},
			{"logservice/segment/open.go", "\tif len(l.segments) == 0 {\n\t\treturn l.roll(0)\n\t}\n",
				"\tif len(l.segments) == 0 {\n\t\treturn l.roll(0)\n\t}\n\tif err := l.keepRecycled(); err != nil {\n\t\treturn err\n\t}\n"},
			{"logservice/segment/open.go", "// renewFooters writes", `// keepRecycled takes up files that an earlier life has left.
func (l *Log) keepRecycled() error {
	names, err := l.fs.ReadDir(l.dir)
	for _, name := range names {
		if !mutant.On("recycled-after-a-restart") || !isRecycledName(name) {
			continue
		}
		file, openErr := l.fs.OpenFile(l.path(name))
		if openErr != nil {
			return openErr
		}
		l.recycled = append(l.recycled, &spareFile{name: name, file: file, bytes: l.options.SegmentBytes})
	}
	return err
}

// renewFooters writes`}}},
	{name: "replaced-entries-read", rule: "entries that were replaced are read", profile: "network", within: 20,
		tests:   []unit{{segments, "TestLogAgainstSlice"}},
		patches: []patch{{"logservice/segment/log.go", "\ts.frames = cutFrames(s.frames, first)\n", "\tif !mutant.On(\"replaced-entries-read\") {\n\t\ts.frames = cutFrames(s.frames, first)\n\t}\n"}}},
	{name: "room-taken-twice", rule: "the segment after a full disk goes on behind what was written of a frame", profile: "disks", within: 20,
		tests:   []unit{{segments, "TestFullDiskUnderWrite|TestFullDisk"}},
		patches: []patch{{"logservice/segment/append.go", "\t\tl.mustRoll = true\n\t\treturn fmt.Errorf", "\t\tl.mustRoll = !mutant.On(\"room-taken-twice\")\n\t\treturn fmt.Errorf"}}},
}
