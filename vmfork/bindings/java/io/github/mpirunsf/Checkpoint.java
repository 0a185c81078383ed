package io.github.mpirunsf;

/**
 * A checkpoint, and where one came out of making it (2.3).
 *
 * @param checkpoint its id
 * @param id 0 where it was made; in the clones that were made of it, the clone's
 * @param ticket null where it was made; in the clones, the id of their ticket
 * @param vm whose it is; null: the caller's own
 */
public record Checkpoint(String checkpoint, int id, String ticket, String vm) {}
