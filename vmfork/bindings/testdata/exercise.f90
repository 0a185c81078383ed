! What exercise.c does in its mode calls, for sf.f90.
program exercise
  use sf
  implicit none
  character(len=11), parameter :: kinds(13) = [character(len=11) :: "invalid", "unknown", "refused", "state", &
    "resources", "failed", "lost", "timeout", "killed", "cloned", "version", "unavailable", "novel"]
  character(kind=c_char, len=*), parameter :: web = "web 1%" // c_null_char
  type(sf_identity) :: me
  type(sf_ticket) :: t, other
  type(sf_clone_info), pointer :: clones(:)
  type(sf_vm) :: vms(8)
  character(kind=c_char) :: checkpoint(sf_id_size), ticket(sf_id_size)
  integer(c_int) :: id, statuses(2)
  integer :: i, n

  id = sf_whoami(me)
  print "(a,i0,1x,i0,5a,i0,5a)", "whoami: ", me%id, me%member, " ", sf_text(me%name), " ", sf_text(me%ip), " ", &
    me%vcpus, " [", sf_text(me%host), "] [", sf_text(me%ticket), "]"
  call show_ticket(sf_request_ticket(3, 0, t), t)
  call show_ticket(sf_request_ticket_vm(web, 4, 1, 2, other), other)
  print "(a,i0)", "clone: ", sf_clone(t)
  print "(a,i0)", "clone: ", sf_clone(other)
  call sf_ticket_free(other)
  call show_ticket(sf_get_ticket("t 1" // c_null_char, other), other)
  call sf_ticket_free(other)
  do i = 1, 2
    id = sf_checkpoint_parent(checkpoint, ticket)
    print "(3a,i0,3a)", "checkpoint: [", sf_text(checkpoint), "] ", id, " [", sf_text(ticket), "]"
  end do
  call show("create-clones", sf_create_clones(checkpoint, t))
  call show("discard", sf_discard(checkpoint))
  call show("exit", sf_exit(3))
  call show("exit", sf_exit_vm(web, 4))
  id = sf_join(t, -1d0, statuses)
  clones => sf_clones(t)
  print "(a,i0,a,i0,1x,i0,a,i0)", "join: ", clones(1)%id, ":", statuses(1), clones(2)%id, ":", statuses(2)
  call show("join", sf_join(t, 2.5d0, statuses))
  call show("join", sf_join(t, 0d0, statuses))
  print "(a,i0,a,i0)", "lost: 1:", statuses(1), " 2:", statuses(2)
  call show("kill", sf_kill_clone(t, 2))
  call show("kill", sf_kill(t))
  id = sf_await_fork(ticket)
  print "(a,i0,3a)", "await-fork: ", id, " [", sf_text(ticket), "]"
  n = sf_list_vms(vms, 8)
  do i = 1, n
    print "(3a,i0,3a,i0,3a,i0)", "  ", sf_text(vms(i)%name), " ", vms(i)%member, " ", sf_text(vms(i)%ip), " ", &
      vms(i)%parent, " [", sf_text(vms(i)%ticket), "] ", vms(i)%id
  end do
  do i = 1, size(kinds)
    call show_ticket(sf_get_ticket(trim(kinds(i)) // c_null_char, other), other)
  end do
  call sf_ticket_free(t)

contains

  subroutine show(what, result)
    character(len=*), intent(in) :: what
    integer(c_int), intent(in) :: result

    if (result < 0) then
      print "(6a)", what, ": ", sf_kind(result), " [", sf_errmsg(), "]"
    else
      print "(2a)", what, ": ok"
    end if
  end subroutine

  subroutine show_ticket(result, shown)
    integer(c_int), intent(in) :: result
    type(sf_ticket), intent(in) :: shown
    type(sf_clone_info), pointer :: of_it(:)
    integer :: k

    if (result < 0) then
      call show("ticket", result)
      return
    end if
    print "(5a,i0,1x,i0)", "ticket: [", sf_text(shown%id), "] [", sf_text(shown%vm), "] ", shown%asked, shown%granted
    of_it => sf_clones(shown)
    do k = 1, size(of_it)
      print "(a,i0,5a,i0,3a)", "  ", of_it(k)%id, " ", sf_text(of_it(k)%name), " ", sf_text(of_it(k)%ip), " ", &
        of_it(k)%vcpus, " [", sf_text(of_it(k)%host), "]"
    end do
  end subroutine
end program
