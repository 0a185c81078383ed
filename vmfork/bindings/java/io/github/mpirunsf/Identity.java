package io.github.mpirunsf;

/**
 * Who a VM is.
 *
 * @param id the number in its ticket; 0: not a clone
 * @param member the number in the job's private network
 * @param name its host name
 * @param ip its address on the private network
 * @param vcpus virtual CPUs that are online
 * @param host the physical host
 * @param ticket the ticket that it was made with; null: not a clone
 */
public record Identity(int id, int member, String name, String ip, int vcpus, String host, String ticket) {}
