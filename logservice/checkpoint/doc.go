// Package checkpoint keeps the checkpoints of a log member on disk: large immutable files that others make, of which the
// member knows the name and nothing of the content.
//
// What a caller may rely on:
//
//   - What List returns is durable and whole: Commit verifies size and SHA-256, syncs the file, gives it its name and syncs
//     the directory, in this order. A crash leaves a checkpoint that is listed by the next Open, or none.
//   - Every byte that a Reader returns has been checked against a checksum made when it was received. Damage is an error
//     (ErrDamaged), and the file is set aside: it is not listed any more.
//   - A full disk is ErrNoSpace, and every other failure an error of the call alone: what was being received is given up,
//     what is held stays. Nothing of it is a reason to end the process, because nothing was promised.
//   - What is received is bounded in bytes and in number. What was received in part is kept while the process lives, so
//     that another sender can go on where one stopped; the next Open drops it.
//
// The package may assume the promise of internal/disk, and that no two stores have one directory. All methods may be called
// from any goroutine; those of one Incoming or Reader from one at a time.
//
// A file holds the bytes of the checkpoint, then a footer with the checksums of its chunks (see footer.go). Its name is its
// index in 16 hexadecimal digits, a dash, and its SHA-256.
package checkpoint
