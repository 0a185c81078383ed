package io.github.mpirunsf;

/**
 * Which clone one is after a fork that another triggered (2.3).
 *
 * @param id the clone's id, 1...m
 * @param ticket its ticket's id
 */
public record Fork(int id, String ticket) {}
