package io.github.mpirunsf;

/**
 * One clone that a ticket describes.
 *
 * @param id 1...m; the parent is 0
 * @param name its host name
 * @param ip its address on the private network
 * @param vcpus virtual CPUs that are online in it
 * @param host the physical host that carries it
 */
public record Clone(int id, String name, String ip, int vcpus, String host) {}
