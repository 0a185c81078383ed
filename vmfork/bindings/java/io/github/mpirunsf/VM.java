package io.github.mpirunsf;

/**
 * One machine of the job.
 *
 * @param name what calls for other VMs want
 * @param member the number in the private network
 * @param ip its address there
 * @param parent its parent's member; -1: none
 * @param ticket the ticket that it was made with; null: not a clone
 * @param id the number in its ticket; 0: not a clone
 */
public record VM(String name, int member, String ip, int parent, String ticket, int id) {}
